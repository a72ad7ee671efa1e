"""A LookupViT or a ViT as the backbone of dense prediction: from images to one map of features.

All N lookup tokens survive the blocks, so that they are the map; its stride is the patch.

Letters: B batch, C image channels, (Y, X) pixels, (h, w) lookup grid, N = h w, M compressed tokens, D embed_dim.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.checks import check_positive
from lookupvit.grid import Size, covering_grid, resize_tokens, size_at_stride, to_2tuple
from lookupvit.model.layers import PooledHead
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.vit import ViT


class Maps(NamedTuple):
    """What a backbone gives.

    Attributes:
        features: Map of features `(B, D, h, w)`.
        compressed: Compressed tokens `(B, M, D)`, normalised; None where they were not asked for.
        compressed_size: Grid of the compressed tokens; None for a ViT.
    """

    features: Tensor
    compressed: Tensor | None
    compressed_size: Size | None


class DenseFeatures(nn.Module):
    """Gives maps `(B, D, h, w)` with the patch as their stride, of images of any size.

    An image that the patch does not divide is padded with zeros at the bottom and on the right: the map has
    h = ceil(Y / stride) rows, and its cell (i, j) covers the pixels from (i, j) * stride on.

    The backbone is taken over: its classifiers go, and so does the final norm of tokens that nothing reads, because
    distributed training needs a gradient for every parameter.

    Args:
        backbone: A `LookupViT` or a `ViT`, from `create_model`, best with `num_classes=0`.
        fuse_compressed: Whether the compressed tokens, resized to the lookup grid, are added to the map.
        keep_compressed: Whether the caller reads `Maps.compressed`.
        compressed_stride: Pixels per compressed token along each axis. The compressed grid then follows the size and
            the aspect of each batch of images; None takes the backbone's own `compressed_size`.
        grad_checkpointing: Whether to compute each block again in the backward pass instead of storing its activations;
            None leaves the backbone as it is.

    Attributes:
        backbone: The backbone.
        embed_dim: D.
        stride: Pixels per cell of the map, (y, x).

    Raises:
        ValueError: For a backbone whose last block does not update its lookup tokens, one whose compressed tokens
            nothing would read, or options that a ViT does not have; in one line.
    """

    def __init__(
        self,
        backbone: nn.Module,
        fuse_compressed: bool = False,
        keep_compressed: bool = False,
        compressed_stride: int | None = None,
        grad_checkpointing: bool | None = None,
    ):
        super().__init__()
        if not isinstance(backbone, LookupViT | ViT) or hasattr(backbone, "num_frames"):
            raise ValueError(f"a {type(backbone).__name__} gives no map of an image: take a lookupvit_ or vit_ model")
        reads_compressed = fuse_compressed or keep_compressed
        if isinstance(backbone, LookupViT):
            _check_lookup(backbone, reads_compressed)
            kept = ("compressed", "lookup") if reads_compressed else ("lookup",)
            backbone.norms = nn.ModuleDict({name: backbone.norms[name] for name in kept})
            backbone.heads = nn.ModuleDict({name: PooledHead(backbone.embed_dim, 0) for name in kept})
            backbone.head = "both" if reads_compressed else "lookup"
        elif reads_compressed or compressed_stride is not None:
            raise ValueError(
                "a plain ViT has no compressed tokens: leave out fuse_compressed, compressed_size and heads that read "
                "them"
            )
        else:
            backbone.vit.reset_classifier(0)
        if compressed_stride is not None:
            check_positive(stride=compressed_stride)
        backbone.num_classes = 0
        self.backbone = backbone
        self.fuse_compressed, self.compressed_stride = fuse_compressed, compressed_stride
        self.embed_dim: int = backbone.embed_dim
        self.stride: tuple[int, int] = tuple(backbone.patch_size)
        if grad_checkpointing is not None:
            backbone.set_grad_checkpointing(grad_checkpointing)

    def forward(self, images: Tensor, compressed_size: int | Size | None = None) -> Tensor:
        """Maps of images.

        Args:
            images: `(B, C, Y, X)`, normalised.
            compressed_size: Compressed grid of this call; by default that of `size_for`.

        Returns:
            `(B, D, h, w)` with h = ceil(Y / stride) and w likewise.
        """
        return self.forward_sizes(images, [compressed_size])[0].features

    def forward_sizes(self, images: Tensor, sizes: Sequence[int | Size | None]) -> list[Maps]:
        """Maps at several compressed sizes, of images `(B, C, Y, X)` that are embedded once; one `Maps` for each."""
        down, right = (-side % step for side, step in zip(images.shape[2:], self.stride, strict=True))
        own = self.size_for(images.shape[2:])
        if down or right:
            images = F.pad(images, (0, right, 0, down))
        if isinstance(self.backbone, ViT):
            tokens = self.backbone.forward_features(images, next((size for size in sizes if size is not None), None))
            return [Maps(_as_map(tokens.lookup, tokens.grid_size), None, None)] * len(sizes)
        lookup, grid = self.backbone.embed_images(images)
        return [self._maps(lookup, grid, own if size is None else size) for size in sizes]

    def _maps(self, lookup: Tensor, grid: Size, size: int | Size | None) -> Maps:
        tokens = self.backbone.forward_tokens(lookup, grid, size)
        cells = tokens.lookup  # (B, N, D)
        if self.fuse_compressed:
            cells = cells + resize_tokens(tokens.compressed, tokens.compressed_size, grid)
        return Maps(_as_map(cells, grid), tokens.compressed, tokens.compressed_size)

    def size_for(self, img_size: Sequence[int]) -> Size | None:
        """The compressed grid of an image of (Y, X) pixels; None for a ViT.

        It is that of `compressed_stride` where that is set, the backbone's own otherwise.
        """
        if self.compressed_stride is None:
            return self.backbone.compressed_size
        return size_at_stride(img_size, self.compressed_stride, covering_grid(img_size, self.stride))

    @property
    def img_size(self) -> tuple[int, int]:
        """The backbone's native image size (Y, X)."""
        return self.backbone.img_size

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, and what reads the map."""
        return self.backbone.num_layers

    def layer_id(self, name: str) -> int:
        """Layer of a parameter of the backbone: 0 the embedding, 1 to L the blocks, L + 1 the final norms."""
        return self.backbone.layer_id(name.removeprefix("backbone."))


class DenseModel(nn.Module):
    """A model that reads the maps of a `DenseFeatures`: what the command line asks of every model.

    Attributes:
        features: The `DenseFeatures`.
        prefix: What the names of its parameters begin with.
    """

    features: DenseFeatures
    prefix = "features."
    # What its file says of it, see `HubMixin`.
    class_names: list[str] | None = None
    pixels: Any = None
    trained_sizes: list[Size] | None = None
    scores: dict[str, float] = {}
    task_options: dict[str, Any] = {}

    @property
    def backbone(self) -> nn.Module:
        """The `LookupViT` or `ViT`."""
        return self.features.backbone

    @property
    def img_size(self) -> tuple[int, int]:
        """Native image size (height, width)."""
        return to_2tuple(self.backbone.img_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Pixels per cell of the backbone's map."""
        return self.features.stride

    @property
    def compressed_size(self) -> Size | None:
        """Compressed grid at the native image size; None for a ViT."""
        return self.backbone.compressed_size

    @compressed_size.setter
    def compressed_size(self, size: Size) -> None:
        self.backbone.compressed_size = size

    def set_path(self, path: str) -> None:
        """Sets the path of every block of a LookupViT."""
        self.backbone.set_path(path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of each block on or off."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {f"{self.prefix}{name}" for name in self.features.no_weight_decay()}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, and what reads the map."""
        return self.features.num_layers

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: 0 the embedding, 1 to L the blocks, L + 1 the final norms and what reads the map."""
        if name.startswith(self.prefix):
            return self.features.layer_id(name.removeprefix(self.prefix))
        return self.num_layers - 1


def _check_lookup(backbone: LookupViT, reads_compressed: bool) -> None:
    """Raises a one-line ValueError if a LookupViT lacks what the map is made of, or nothing reads what it has."""
    if backbone.head == "compressed":
        raise ValueError(
            "head='compressed': the last block of this backbone does not update its lookup tokens, which are the map; "
            "build it with head='both' or head='lookup'"
        )
    if reads_compressed and backbone.head != "both":
        raise ValueError(
            "head='lookup': this backbone has no norm for its compressed tokens, which are read here; build it with "
            "head='both'"
        )
    if not reads_compressed and not backbone.blocks[0].infuse:
        raise ValueError(
            "infuse=False: nothing would read the compressed tokens of this backbone; set fuse_compressed=True"
        )


def _as_map(tokens: Tensor, grid: Size) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)  # (B, N, D) -> (B, D, N) -> (B, D, h, w)
