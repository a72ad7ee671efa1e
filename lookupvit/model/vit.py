"""The plain ViT that LookupViT is compared with: timm's, with the interface of `LookupViT`.

Letters: B batch, C image channels, (Y, X) pixels, N tokens, D embed_dim.
"""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lookupvit.checks import check_heads, check_positive, check_ratios, check_residual_init
from lookupvit.grid import Tokens, grid_of, to_2tuple
from lookupvit.model.init import init_linear_layers, init_residual_branches
from lookupvit.weights.hub import HubMixin


class ViT(HubMixin, nn.Module):
    """timm's `VisionTransformer` (global average pool after the final norm, no class token).

    Embedding, positions, initialisation, norm and pooled head are those of `LookupViT`; only the blocks differ.

    Args:
        img_size: Native image size, int or (height, width).
        patch_size: Patch size in pixels, int or (height, width).
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 gives pooled features instead of logits.
        embed_dim: D.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP over D.
        qkv_bias: Biases on Q, K and V.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the embedding.
        proj_drop_rate: Dropout after output projections and MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks.
        grad_checkpointing: Whether to compute each block again in the backward pass instead of storing its activations.
        weight_init: How linear layers are initialised, see `init_linear_layers`.
        residual_init: How residual branches begin, see `LookupViT`.

    Raises:
        ValueError: For sizes that do not fit, in one line.
    """

    compressed_size = None  # there are no compressed tokens

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
        weight_init: str = "trunc_normal",
        residual_init: str | float = "default",
    ):
        super().__init__()
        check_heads(embed_dim, num_heads)
        check_positive(depth=depth, in_chans=in_chans)
        check_ratios(mlp_ratio=mlp_ratio)
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        grid_of(self.img_size, self.patch_size)
        self.embed_dim, self.depth, self.num_classes = embed_dim, depth, num_classes
        self.vit = VisionTransformer(
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool="avg",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            init_values=check_residual_init(residual_init),
            class_token=False,
            fc_norm=False,
            dynamic_img_size=True,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if weight_init != "trunc_normal":  # timm has already done that one
            init_linear_layers(self.vit, weight_init)
        init_residual_branches(self.vit, residual_init)
        self.vit.set_grad_checkpointing(grad_checkpointing)

    def forward_features(self, x: Tensor, compressed_size: None = None, head: None = None) -> Tokens:
        """Images `(B, C, Y, X)` to normalised `Tokens` with `lookup` `(B, N, D)` only.

        Raises:
            ValueError: If a compressed size or a head is asked for, or the patch does not divide the image.
        """
        if compressed_size is not None or head is not None:
            raise ValueError("a plain ViT has no compressed tokens: leave compressed_size and head out")
        if x.ndim != 4 or x.shape[1] != self.vit.patch_embed.proj.in_channels:
            raise ValueError(
                f"expected images of shape (B, {self.vit.patch_embed.proj.in_channels}, height, width), "
                f"got {tuple(x.shape)}"
            )
        grid = grid_of((x.shape[2], x.shape[3]), self.patch_size)
        return Tokens(None, self.vit.forward_features(x), None, grid)

    def forward_logits(self, tokens: Tokens) -> dict[str, Tensor]:
        """Logits `(B, num_classes)` of the only head, which is named "pooled"."""
        return {"pooled": self.forward_head(tokens)}

    def forward_head(self, tokens: Tokens) -> Tensor:
        """Logits `(B, num_classes)` of the pooled classifier."""
        return self.vit.forward_head(tokens.lookup)

    def forward(self, x: Tensor, compressed_size: None = None, head: None = None) -> Tensor:
        """Images `(B, C, Y, X)` to logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(x, compressed_size, head))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of each block on or off."""
        self.vit.set_grad_checkpointing(enable)

    def init_head_bias(self, value: float) -> None:
        """Sets the classifier's bias."""
        nn.init.constant_(self.vit.head.bias, value)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {"vit.pos_embed"}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, heads."""
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: 0 the embedding, 1 to depth the blocks, depth + 1 final norm and head."""
        _, first, *rest = name.split(".")
        if first in ("patch_embed", "pos_embed"):
            return 0
        return int(rest[0]) + 1 if first == "blocks" else self.depth + 1
