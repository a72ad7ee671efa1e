"""Semantic segmentation: images with a class for each pixel, as samples and batches.

Letters: `B` batch, `Y, X` height and width of a batch, `H, W` of one image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.dense.base import DenseDataModule, DenseImages, ToPredict, normalise, stack_padded
from datamodules.dense.masks import IGNORE, ClassMap, check_same_size, palette_of, read_numbers
from datamodules.dense.transforms import JitterCrop, ResizeWhole, train_steps
from datamodules.images.collate import without_corrupt
from datamodules.images.decode import decode_rgb
from datamodules.loading.files import what_is_there

ReadMask = Callable[[str], Tensor]


class MaskedImages(DenseImages):
    """Images with semantic masks. A sample is `(image (3, H, W) float, mask (H, W) uint8, path)`.

    Args:
        samples: Pairs of an image's path and its mask's.
        read_mask: A mask's path -> classes `(H, W)`, uint8, 255 where there is none.
        transform: Joint, of `Image` and `Mask`.
        options: Normalisation.
        skip_corrupt: As for `DenseImages`.
    """

    def __init__(
        self,
        samples: list[tuple[str, str]],
        read_mask: ReadMask,
        transform: v2.Transform,
        options: dict[str, Any],
        skip_corrupt: bool = False,
    ) -> None:
        super().__init__(samples, transform, skip_corrupt)
        self.read_mask, self.options = read_mask, options

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        path, mask_path = self.samples[index]
        image, mask = decode_rgb(path), self.read_mask(mask_path)
        check_same_size(mask.shape, image.shape[-2:], mask_path, path)
        return image, mask

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str] | None:
        read = self._read(index)
        if read is None:
            return None
        image, mask = self.transform(tv_tensors.Image(read[0]), tv_tensors.Mask(read[1]))
        return normalise(image, self.options), mask.as_subclass(Tensor), self.samples[index][0]


class CollateMasks:
    """Samples of `MaskedImages` -> a batch; those left out are dropped.

    Args:
        size: (Y, X) of the batch; None = its largest height and width.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def __call__(self, samples: list[tuple[Tensor, Tensor, str] | None]) -> dict[str, Any]:
        """A dict of `images (B, 3, Y, X)`, `masks (B, Y, X)` int64, `sizes (B, 2)` and `files`."""
        images, masks, files = (list(column) for column in zip(*without_corrupt(samples), strict=True))
        batch, sizes = stack_padded(images, self.size)
        labels = torch.full((len(masks), *batch.shape[-2:]), IGNORE)  # (B, Y, X) int64
        for row, mask in zip(labels, masks, strict=True):
            row[: mask.shape[0], : mask.shape[1]] = mask
        return {"images": batch, "masks": labels, "sizes": sizes, "files": files}


def collate_images(samples: list[tuple[Tensor, tuple[int, int], str]]) -> dict[str, Any]:
    """Samples of `ToPredict` -> a dict of `images`, `sizes` and `files`, and the files' own `original_sizes (B, 2)`."""
    images, original, files = zip(*samples, strict=True)
    batch, sizes = stack_padded(list(images))
    return {"images": batch, "sizes": sizes, "files": list(files), "original_sizes": torch.tensor(original)}


class SegmentationDataModule(DenseDataModule):
    """A subclass says which classes there are and lists the pairs of images and masks of a split.

    Batches are dicts of

    - `images (B, 3, Y, X)`, normalised float;
    - `masks (B, Y, X)`, int64: class indices, and 255 where there is none;
    - `sizes (B, 2)`, int64: height and width of each image before it was padded at the bottom and at the right, by
      zeros, and in the mask by 255;
    - `files`: B paths.

    In training `Y, X` is `img_size`; in evaluation images are whole, and `Y, X` the largest height and width of the
    batch. Prediction batches have no masks; an image that cannot be read is blank there, and its name an `Unreadable`,
    which says why.

    Args:
        root: The folder of the data.
        eval_size: (height, width) that images and masks are resized to in evaluation, whatever their shape.
        max_class_ratio: In training, a crop in which one class has more than this part of the labelled pixels is drawn
            anew, up to ten times; 0.75 is usual, 1 = never.
        unlabelled: Numbers in the masks that have no class, besides 255; one, or several.
        palette: `[red, green, blue]` of each class, for pictures; `None` = colours that differ much.
        short_side: Pixels that the shorter side of an image is resized to in evaluation, and that a random scale of 1
            means in training; `None` = its own size.
        kwargs: As for `DenseDataModule`.
    """

    ignore_index = IGNORE

    def __init__(
        self,
        root: str,
        eval_size: int | tuple[int, int] | None = None,
        max_class_ratio: float = 1.0,
        unlabelled: int | list[int] | None = None,
        palette: list[list[int]] | None = None,
        short_side: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, short_side=short_side, **kwargs)
        self.eval_size = (eval_size, eval_size) if isinstance(eval_size, int) else eval_size and tuple(eval_size)
        self.max_class_ratio, self._palette = max_class_ratio, palette
        self.unlabelled = [unlabelled] if isinstance(unlabelled, int) else list(unlabelled or ())
        if self.eval_size is not None and (len(self.eval_size) != 2 or min(self.eval_size) < 1):
            raise ValueError(f"data.eval_size needs one positive number or (height, width), got {eval_size}")
        if self.eval_size is not None and short_side is not None:
            raise ValueError("data.eval_size and data.short_side both say how large an image is: set one of them")
        if not 0 < max_class_ratio <= 1:
            raise ValueError(f"data.max_class_ratio must lie in (0, 1], got {max_class_ratio}")
        if strange := [number for number in self.unlabelled if not 0 <= number < 65536]:
            raise ValueError(f"data.unlabelled: {strange[0]} is no number of a mask; give numbers from 0 to 65535")

    # -- classes -----------------------------------------------------------------------------------------------------

    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored index."""
        return len(self.class_names)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Red, green and blue, 0 to 255, of each class."""
        if self._palette is None:
            return self._known_palette()
        if len(self._palette) != self.num_classes:
            raise ValueError(f"data.palette has {len(self._palette)} colours for {self.num_classes} classes")
        return [tuple(colour) for colour in self._palette]

    def _known_palette(self) -> list[tuple[int, int, int]]:
        return palette_of(self.num_classes)

    def _class_map(self) -> ClassMap:
        """What the numbers in the masks mean."""
        return ClassMap(self.num_classes, ignored=self.unlabelled)

    # -- data sets ---------------------------------------------------------------------------------------------------

    def _reader(self, split: str) -> ReadMask:
        return _ReadMask(self._class_map())

    def _transform(self, training: bool) -> v2.Transform:
        if not training:
            return ResizeWhole(self.eval_size, self.short_side)
        crop = JitterCrop(self.img_size, self.scale, self.short_side, self.max_class_ratio, IGNORE)
        return v2.Compose(train_steps(crop, self.options))

    def _labelled(self, samples: list[tuple[str, Any]], split: str, training: bool = False) -> MaskedImages:
        transform = self._transform(training)
        return MaskedImages(samples, self._reader(split), transform, self.options, self.skip_corrupt)

    def _check_samples(self, samples: list[tuple[str, Any]], split: str) -> None:
        if not samples:
            raise ValueError(f"no images of the split {split!r} in {str(self.root)!r}: {what_is_there(self.root)}")
        missing = [sample for sample in samples if not Path(sample[1]).is_file()]
        if missing:
            path, mask = missing[0]
            raise FileNotFoundError(
                f"{len(missing)} of {len(samples)} images of the split {split!r} have no mask, such as {path!r}: "
                f"expected {mask!r}; add the masks, or list the images in a file for data.exclude (lookupvit "
                "check-data writes it)"
            )

    def _predict_dataset(self, paths: list[str]) -> ToPredict:
        return ToPredict(paths, self._transform(False), self.options, self.eval_size or self.img_size)

    def _collate(self, training: bool = False) -> CollateMasks:
        return CollateMasks(self.img_size if training else None)

    def _collate_predict(self) -> Any:
        return collate_images


class _ReadMask:
    """A mask's path -> classes `(H, W)`, uint8."""

    def __init__(self, class_map: ClassMap) -> None:
        self.class_map = class_map

    def __call__(self, path: str) -> Tensor:
        return self.class_map(read_numbers(path), path)
