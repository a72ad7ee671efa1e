"""Semantic segmentation: a backbone, a head, and a bilinear resize to the image.

Letters: B batch, (Y, X) pixels, (h, w) lookup grid, C classes.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lookupvit.checks import check_choice, check_positive
from lookupvit.grid import Size
from lookupvit.model.dense.features import DenseFeatures, DenseModel
from lookupvit.model.dense.heads import HEADS
from lookupvit.model.zoo import create_model, model_arguments


class Segmenter(DenseModel):
    """Gives every pixel of an image of any size a score for each class.

    Args:
        name: Backbone, one of `lookupvit.list_models()`, of images.
        num_classes: C.
        img_size: The backbone's native image size, int or (height, width); None keeps that of its name.
        compressed_size: Compressed grid of a LookupViT; `{"stride": 64}` for one token per 64 pixels along each axis,
            whatever the size of the image; None keeps that of the name.
        head: "linear", "mask_transformer" or "compressed_queries", see `lookupvit/model/dense/heads.py`.
        head_args: Further arguments of the head, such as `{"depth": 2}`.
        fuse_compressed: Whether the compressed tokens are resized to the lookup grid and added to the map.
        drop_path_rate: Stochastic depth of the backbone's last block; it grows linearly from the first.
        args: Further arguments of `lookupvit.create_model`.

    Attributes:
        features: The `DenseFeatures`.
        head: The head.
        arguments: What it was built with, as plain data.

    Raises:
        ValueError: For sizes that do not fit and options that do not exist, in one line.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        img_size: int | tuple[int, int] | None = None,
        *,
        compressed_size: int | Size | dict[str, int] | None = None,
        head: str = "linear",
        head_args: dict[str, Any] | None = None,
        fuse_compressed: bool = False,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_choice("head", head, tuple(HEADS))
        check_positive(num_classes=num_classes)
        stride = stride_of(compressed_size)
        keep, args = HEADS[head].reads_compressed, dict(args or {})
        given = {"img_size": img_size, "drop_path_rate": drop_path_rate, "num_classes": 0, **args}
        if "compressed_size" in model_arguments(name):
            # without a norm for tokens that nothing reads; an argument of the user's wins, and may be refused
            given.setdefault("head", "both" if keep or fuse_compressed else "lookup")
            if not args.get("infuse", True) and "head" not in args:
                given["head"] = "both"  # which the map refuses with a better reason
        if stride is not None:
            given["compressed_size"] = 1
        elif compressed_size is not None:
            given["compressed_size"] = compressed_size
        self.features = DenseFeatures(create_model(name, **given), fuse_compressed, keep, stride)
        known = tuple(inspect.signature(HEADS[head]).parameters)[2:]
        for key in head_args or {}:
            check_choice("head_args", key, known)
        self.head = HEADS[head](self.features.embed_dim, num_classes, **(head_args or {}))
        self.num_classes = num_classes
        if stride is not None:
            self.compressed_size = self.features.size_for(self.img_size)
        self.arguments = {
            "name": name,
            "num_classes": num_classes,
            "img_size": list(self.img_size),
            "compressed_size": compressed_size,
            "head": head,
            "head_args": head_args,
            "fuse_compressed": fuse_compressed,
            "args": args,
        }
        self.arguments = {key: value for key, value in self.arguments.items() if value is not None}

    def forward(self, images: Tensor, compressed_size: int | Size | None = None, head: None = None) -> Tensor:
        """Images to logits.

        Args:
            images: `(B, 3, Y, X)`, normalised, of any size.
            compressed_size: Compressed grid of this call; by default the model's own, or that of its stride.
            head: Of classifiers; there is one head here.

        Returns:
            Logits `(B, C, Y, X)`.
        """
        check_no_head(head)
        return self.to_pixels(self.forward_maps(images, [compressed_size])[0], images.shape[2:])

    def forward_maps(self, images: Tensor, sizes: Sequence[int | Size | None]) -> list[Tensor]:
        """Logits `(B, C, h, w)` of the map's cells at several compressed sizes, of images that are embedded once."""
        return [self.head(maps) for maps in self.features.forward_sizes(images, sizes)]

    def to_pixels(self, logits: Tensor, img_size: Sequence[int]) -> Tensor:
        """Cells to pixels: `(B, C, h, w)` to `(B, C, Y, X)`, bilinear, without what `forward_sizes` padded."""
        whole = [cells * step for cells, step in zip(logits.shape[2:], self.features.stride, strict=True)]
        logits = F.interpolate(logits, size=whole, mode="bilinear", align_corners=False)
        return logits[:, :, : img_size[0], : img_size[1]]

    # -- what the command line asks of every model ---------------------------------------------------------------------

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.features.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks of the backbone."""
        return self.backbone.depth

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return super().no_weight_decay() | {"head.queries"}


def stride_of(compressed_size: Any) -> int | None:
    """The stride of `{"stride": 64}`; None for another way to give a compressed size.

    Raises:
        ValueError: For a mapping that has anything else, in one line.
    """
    if not isinstance(compressed_size, dict):
        return None
    if list(compressed_size) != ["stride"]:
        raise ValueError(
            f"compressed_size {compressed_size}: give a grid such as [6, 8], or {{stride: 64}} for one token per 64 px"
        )
    check_positive(stride=compressed_size["stride"])
    return compressed_size["stride"]


def check_no_head(head: str | None) -> None:
    """Raises a one-line ValueError if one of a classifier's heads is asked for."""
    if head is not None:
        raise ValueError(f"head={head!r} is of classifiers: other models have one head, leave it out")
