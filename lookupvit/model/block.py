"""The LookupViT block: heavy work on few compressed tokens, one light MLP on the many lookup tokens.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads.
"""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lookupvit.model.attention import SelfAttention
from lookupvit.model.layers import Mlp
from lookupvit.model.products.fast_attention import FastCrossAttention


class LookupViTBlock(nn.Module):
    """One block, in the order in which information flows.

    1. gather: lookup to compressed, cross-attention;
    2. refine: self-attention and MLP among the compressed tokens;
    3. infuse: compressed to lookup, through the transposed attention of step 1;
    4. the light lookup MLP.

    Args:
        dim: D.
        num_heads: H.
        mlp_ratio: Hidden width of the compressed MLP over D (the paper's p).
        lookup_mlp_ratio: Hidden width of the lookup MLP over D (the paper's 1 / q).
        qkv_bias: See `CrossAttention`.
        proj_drop: Dropout after each output projection and MLP.
        drop_path: Stochastic depth of each of the five residual branches, by sample.
        reuse: See `CrossAttention`.
        cross_norm: See `CrossAttention`.
        infuse: Step 3 exists.
        update_lookup: Steps 3 and 4 exist. False in the last block of a model whose only head reads the compressed
            tokens: parameters there would never get a gradient.
        path: See `CrossAttention`.
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
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(
        self, compressed: Tensor, lookup: Tensor, update_lookup: bool = True, need_attention: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs the block.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
            update_lookup: False skips steps 3 and 4, for a caller that reads the compressed tokens only.
            need_attention: Return the attention too.

        Returns:
            Compressed `(B, M, D)`, lookup `(B, N, D)`, and the attention `(B, H, M, N)` or None.
        """
        drop = self.drop_path
        gathered, attention = self.cross.gather(compressed, lookup, need_attention)
        compressed = compressed + drop(gathered)
        compressed = compressed + drop(self.attn(self.norm1(compressed)))
        compressed = compressed + drop(self.mlp(compressed))
        if self.update_lookup and update_lookup:
            if self.infuse and self.training and drop.p:
                lookup = lookup + drop(self.cross.infuse(compressed, attention, lookup=lookup))
            elif self.infuse:
                lookup = self.cross.infuse(compressed, attention, residual=lookup)
            lookup = lookup + drop(self.lookup_mlp(lookup))
        return compressed, lookup, attention if need_attention else None
