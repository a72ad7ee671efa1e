"""ViViT (arXiv 2103.15691), joint and factorised: the baselines that LookupViViT is compared with.

Letters: B batch, C channels, T frames, (Y, X) pixels, (t, h, w) lookup grid, N = t h w tokens, D embed_dim.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lookupvit.checks import check_heads, check_positive
from lookupvit.grid import Tokens, to_2tuple
from lookupvit.model.init import init_linear_layers, init_residual_branches
from lookupvit.model.layers import PooledHead
from lookupvit.model.video.embed import TubeletEmbed
from lookupvit.model.video.temporal import ClipLayers, TemporalTransformer, check_model, vit_blocks
from lookupvit.weights.hub import HubMixin


class ViViT(ClipLayers, HubMixin, nn.Module):
    """ViT blocks on clips, with the interface of `LookupViViT`.

    Embedding, positions, final norm, pooled head and temporal transformer are those of `LookupViViT`; only the blocks
    differ. The only head is named "pooled". It reads the mean of all tokens in a joint model, and the temporal
    transformer's class token in a factorised model.

    Args:
        model: "joint" (attention over all tokens of a clip) or "factorised" (within each time index, then over time).
        num_frames: Native number of frames T.
        img_size: Native image size, int or (height, width).
        tubelet_size: Number of frames of a tubelet.
        patch_size: Patch size of a tubelet in pixels, int or (height, width).
        in_chans: Image channels.
        num_classes: Number of classes; 0 gives pooled features instead of logits.
        embed_dim: D.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        qkv_bias: Biases on Q, K and V.
        temporal_depth: Number of blocks of the temporal transformer, for a factorised model.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the embeddings of space and time.
        proj_drop_rate: Dropout after output projections and MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks, and again over
            the temporal blocks.
        grad_checkpointing: Whether to compute each block again in the backward pass instead of storing its activations;
            those of the few temporal blocks are stored.
        weight_init: How linear layers are initialised, see `init_linear_layers`.
        residual_init: How residual branches begin, see `LookupViT`.

    Raises:
        ValueError: For sizes that do not fit, in one line.
    """

    compressed_size = None  # there are no compressed tokens

    def __init__(
        self,
        model: str = "joint",
        num_frames: int = 32,
        img_size: int | tuple[int, int] = 224,
        tubelet_size: int = 2,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 400,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        temporal_depth: int = 4,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        weight_init: str = "trunc_normal",
        residual_init: str | float = "default",
    ):
        super().__init__()
        self.factorised = check_model(model)
        check_heads(embed_dim, num_heads)
        check_positive(
            depth=depth,
            in_chans=in_chans,
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            temporal_depth=temporal_depth,
        )
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.num_frames, self.tubelet_size = num_frames, tubelet_size
        self.embed_dim, self.depth, self.num_classes = embed_dim, depth, num_classes
        self.grad_checkpointing = grad_checkpointing
        self.embed = TubeletEmbed((num_frames, *self.img_size), (tubelet_size, *self.patch_size), in_chans, embed_dim)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = vit_blocks(
            depth, embed_dim, num_heads, mlp_ratio, qkv_bias, proj_drop_rate, drop_path_rate, residual_init
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.temporal = None
        if self.factorised:
            self.temporal = TemporalTransformer(
                self.embed.grid_size[0],
                embed_dim,
                temporal_depth,
                num_heads,
                mlp_ratio,
                qkv_bias,
                pos_drop_rate,
                proj_drop_rate,
                drop_path_rate,
                residual_init,
            )
        self.heads = nn.ModuleDict({"pooled": PooledHead(embed_dim, num_classes, drop_rate)})
        init_linear_layers(self, weight_init)
        init_residual_branches(self, residual_init)

    def embed_images(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """`(B, C, T, Y, X)` to tokens `(B, N, D)` and their grid (t, h, w)."""
        x, grid = self.embed(x)
        return self.pos_drop(x), grid

    def forward_tokens(
        self, lookup: Tensor, grid: tuple[int, int, int], compressed_size: None = None, head: None = None
    ) -> Tokens:
        """Runs the blocks and the final norm.

        Args:
            lookup: Embedded tokens `(B, N, D)`.
            grid: Their grid (t, h, w).
            compressed_size: Must be None.
            head: Must be None.

        Returns:
            Normalised `Tokens` with `lookup` `(B, N, D)` only.

        Raises:
            ValueError: If a compressed size or a head is asked for.
        """
        if compressed_size is not None or head is not None:
            raise ValueError("a plain ViViT has no compressed tokens: leave compressed_size and head out")
        B, N, _ = lookup.shape
        if self.factorised:
            lookup = lookup.unflatten(1, (grid[0], -1)).flatten(0, 1)  # (B, t h w, D) -> (B t, h w, D)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                lookup = checkpoint(block, lookup, use_reentrant=False)
            else:
                lookup = block(lookup)
        return Tokens(None, self.norm(lookup).reshape(B, N, -1), None, grid)  # (B t, h w, D) -> (B, N, D)

    def forward_features(self, x: Tensor, compressed_size: None = None, head: None = None) -> Tokens:
        """Clips `(B, C, T, Y, X)` to normalised `Tokens`; see `forward_tokens`."""
        return self.forward_tokens(*self.embed_images(x), compressed_size, head)

    def forward_logits(self, tokens: Tokens) -> dict[str, Tensor]:
        """Logits `(B, C)` of the one head, named "pooled"."""
        return {"pooled": self.forward_head(tokens)}

    def forward_head(self, tokens: Tokens) -> Tensor:
        """Classifier on the mean of the tokens, or on the class token of time: logits `(B, C)`."""
        pooled = tokens.lookup if self.temporal is None else self.temporal(tokens.lookup, tokens.grid_size[0])
        return self.heads["pooled"](pooled)

    def forward(self, x: Tensor, compressed_size: None = None, head: None = None) -> Tensor:
        """Clips `(B, C, T, Y, X)` to logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(x, compressed_size, head))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of each block on or off."""
        self.grad_checkpointing = enable

    def init_head_bias(self, value: float) -> None:
        """Sets the classifier's bias."""
        nn.init.constant_(self.heads["pooled"].fc.bias, value)
