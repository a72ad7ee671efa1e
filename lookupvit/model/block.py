"""The LookupViT block: the heavy layers run on the few compressed tokens, one light MLP on the many lookup tokens.

Start reading here. `lookupvit/model/attention.py` has the two kinds of attention, `lookupvit/model/layers.py` the MLP.
The paper is arXiv 2407.12753.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads.
"""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lookupvit.model.attention import SelfAttention
from lookupvit.model.layers import Mlp, layer_scale
from lookupvit.model.products.fast_attention import FastCrossAttention


class LookupViTBlock(nn.Module):
    """One pre-norm block, in the order in which information flows. Each step adds to its residual stream.

    1. Gather: cross-attention from the lookup tokens to the compressed tokens.
    2. Refine: self-attention and an MLP on the compressed tokens alone.
    3. Infuse: from the compressed tokens back to the lookup tokens, with the transposed attention of step 1.
    4. The light MLP on the lookup tokens.

    Args:
        dim: D.
        num_heads: H.
        mlp_ratio: Hidden width of the compressed MLP over D (the paper's p).
        lookup_mlp_ratio: Hidden width of the lookup MLP over D (the paper's 1 / q).
        qkv_bias: See `CrossAttention`.
        proj_drop: Dropout after each output projection and MLP.
        drop_path: Stochastic depth, drawn for each sample and each of the five residual branches.
        reuse: See `CrossAttention`.
        cross_norm: See `CrossAttention`.
        infuse: Whether step 3 exists.
        update_lookup: Whether steps 3 and 4 exist. The last block of a model whose only head reads the compressed
            tokens does without them, because their parameters would never get a gradient.
        path: See `FastCrossAttention`.
        residual_init: A number multiplies the output of each branch by a LayerScale that begins there; the model does
            the rest, see `init_residual_branches`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        lookup_mlp_ratio: float = 0.5,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        reuse: str = "transpose",
        cross_norm: str = "input",
        infuse: bool = True,
        update_lookup: bool = True,
        path: str = "auto",
        residual_init: str | float = "default",
    ):
        super().__init__()
        self.infuse = infuse and update_lookup
        self.update_lookup = update_lookup
        self.cross = FastCrossAttention(dim, num_heads, qkv_bias, proj_drop, reuse, cross_norm, self.infuse, path)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, proj_drop)
        self.mlp = Mlp(dim, round(dim * mlp_ratio), proj_drop)
        if update_lookup:
            self.lookup_mlp = Mlp(dim, round(dim * lookup_mlp_ratio), proj_drop)
            self.ls_lookup_mlp = layer_scale(dim, residual_init)
        if self.infuse:
            self.ls_infuse = layer_scale(dim, residual_init)
        self.ls_gather, self.ls1, self.ls2 = (layer_scale(dim, residual_init) for _ in range(3))  # ls1, ls2: as in timm
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(
        self, compressed: Tensor, lookup: Tensor, update_lookup: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs the block.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
            update_lookup: False skips steps 3 and 4, for a caller that reads the compressed tokens only.
            need_attention: Whether to return the attention too.

        Returns:
            The compressed tokens `(B, M, D)`, the lookup tokens `(B, N, D)`, and the attention `(B, H, M, N)` or None.
        """
        drop = self.drop_path
        # 1. gather
        gathered, attention = self.cross.gather(compressed, lookup, need_attention)
        compressed = compressed + drop(self.ls_gather(gathered))
        # 2. refine
        compressed = compressed + drop(self.ls1(self.attn(self.norm1(compressed))))
        compressed = compressed + drop(self.ls2(self.mlp(compressed)))
        if self.update_lookup and update_lookup:
            # 3. infuse; unless the branch is dropped or scaled, `infuse` adds the residual itself, to save a pass
            plain = self.infuse and isinstance(self.ls_infuse, nn.Identity) and not (self.training and drop.p)
            if plain:
                lookup = self.cross.infuse(compressed, attention, residual=lookup)
            elif self.infuse:
                lookup = lookup + drop(self.ls_infuse(self.cross.infuse(compressed, attention, lookup=lookup)))
            # 4. light lookup MLP
            lookup = lookup + drop(self.ls_lookup_mlp(self.lookup_mlp(lookup)))
        return compressed, lookup, attention if need_attention else None
