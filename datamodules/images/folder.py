"""Images on disk as data sets: the sorted class tree, and plain lists of files.

Letters: `H, W` height and width of one image, `n` images of a data set.
"""

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from datamodules.images.decode import CorruptImageError, decode_bytes, decode_rgb
from datamodules.loading.files import find_files, what_is_there
from datamodules.loading.unreadable import READ_ERRORS, unreadable

__all__ = [
    "EXTENSIONS",
    "CorruptImageError",
    "ImageFolder",
    "ImagesToPredict",
    "LabelledImages",
    "decode_bytes",
    "decode_rgb",
    "find_class_folders",
    "find_images",
]

EXTENSIONS = tuple(sorted({*IMG_EXTENSIONS, ".gif"}))


def find_class_folders(directory: str | os.PathLike) -> list[str]:
    """Sorted names of the class folders of one split; folders whose name starts with a dot are no classes.

    Raises:
        FileNotFoundError: The directory is missing.
        ValueError: It holds no class folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"no folder {str(directory)!r}: {what_is_there(directory.parent)}; expected one folder per class in it, "
            "e.g. train/n01440764/*.JPEG (docs/DATA.md shows the layouts; data.root names the folder above)"
        )
    classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(
            f"no class folders in {str(directory)!r}: {what_is_there(directory)}; expected one folder per class, "
            f"e.g. {directory.name}/n01440764/*.JPEG"
        )
    return classes


class _ImageSamples:
    """What both data sets share: decode one sample, or leave it out and remember that."""

    samples: Sequence[tuple[str, object]]
    transform: Callable[[Tensor], Tensor] | None
    images: Tensor | None = None

    def _init_reader(self, skip_corrupt: bool, exclude: Collection[str] = ()) -> None:
        self.skip_corrupt = skip_corrupt
        if exclude:
            self.samples = [sample for sample in self.samples if os.path.abspath(sample[0]) not in exclude]
            if not self.samples:
                raise ValueError("data.exclude lists every image of a split: check the list, or set it to null")
        # Shared memory, so that the main process sees what the workers left out.
        self._corrupt = torch.zeros(len(self.samples) if skip_corrupt else 0, dtype=torch.bool).share_memory_()

    @property
    def skipped(self) -> list[str]:
        """Paths of the corrupt images left out so far (only with `skip_corrupt`)."""
        return [self.samples[index][0] for index in self._corrupt.nonzero().flatten().tolist()]

    def _decode(self, index: int) -> Any:
        """The image; with labels of its own, a subclass reads these here too, and raises a `CorruptImageError`."""
        return decode_rgb(self.samples[index][0])

    def _read(self, index: int) -> Any:
        if self.images is not None:
            # (3, H, W): one row of the cache. Nobody writes into it: every transform makes a new tensor.
            return None if self.skip_corrupt and self._corrupt[index] else self.images[index]
        try:
            return self._decode(index)
        except CorruptImageError as error:
            if not self.skip_corrupt:
                raise
            if not self._corrupt[index]:  # name every file once, not once per epoch
                self._corrupt[index] = True
                text = str(error).split("; ")[0]
                warnings.warn(f"left out: {text} ({int(self._corrupt.sum())} left out so far)", stacklevel=2)
            return None

    def __getitem__(self, index: int) -> tuple[Tensor, object] | None:
        image = self._read(index)
        if image is None:
            return None
        if self.transform is not None:
            image = self.transform(image)
        return image, self.samples[index][1]

    def __len__(self) -> int:
        return len(self.samples)


class ImageFolder(_ImageSamples, DatasetFolder):
    """A map-style data set over a tree `root/CLASS/**/*.jpg`; the class index is the place of the sorted folder name.

    Args:
        root: The folder of one split.
        transform: From a uint8 tensor `(3, H, W)` to whatever the batch needs.
        skip_corrupt: An image that cannot be decoded becomes `None` (the collate function drops it) with a warning
            that names it, in place of an error.
        cache: Decode every image once into one uint8 tensor `(n, 3, H, W)`, shared with forked workers; all images
            must have one size.
        exclude: Absolute paths of files to leave out.

    Raises:
        FileNotFoundError: The folder is missing.
        ValueError: No class folders, a class folder without images, or images of several sizes under `cache`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        transform: Callable[[Tensor], Tensor] | None = None,
        skip_corrupt: bool = False,
        cache: bool = False,
        exclude: Collection[str] = (),
    ) -> None:
        own = {"is_valid_file": is_image_in(root), "transform": transform, "allow_empty": True}
        super().__init__(os.fspath(root), loader=decode_rgb, **own)
        filled = set(self.targets)
        empty = [name for name, index in self.class_to_idx.items() if index not in filled]
        if empty:
            more = f" (and {len(empty) - 1} more class folders)" if len(empty) > 1 else ""
            folder = Path(root) / empty[0]
            raise ValueError(
                f"no images in the class folder {str(folder)!r}{more}: {what_is_there(folder)}; "
                f"put images there ({' '.join(EXTENSIONS)}) or remove the folder"
            )
        self._init_reader(skip_corrupt, exclude)
        self.targets, self.imgs = [label for _, label in self.samples], self.samples  # torchvision's names
        if cache:
            self.images = self._decode_all()

    def find_classes(self, directory: str | os.PathLike) -> tuple[list[str], dict[str, int]]:
        """Sorted class folders and their indices (called by torchvision's `DatasetFolder`)."""
        classes = find_class_folders(directory)
        return classes, {name: index for index, name in enumerate(classes)}

    def _decode_all(self) -> Tensor:
        images: Tensor | None = None
        for index, (path, _) in enumerate(self.samples):
            image = self._read(index)
            if image is None:
                continue
            if images is None:
                images = torch.zeros(len(self.samples), *image.shape, dtype=torch.uint8)  # (n, 3, H, W)
            if image.shape != images.shape[1:]:
                found, expected = ("x".join(map(str, shape[-2:])) for shape in (image.shape, images.shape))
                raise ValueError(
                    f"data.cache=true needs images of one size: {path!r} is {found}, the first image is {expected}; "
                    "set data.cache=false"
                )
            images[index] = image
        if images is None:
            raise ValueError(f"every one of the {len(self.samples)} images in {str(self.root)!r} is corrupt")
        return images


class LabelledImages(_ImageSamples, Dataset):
    """A map-style data set over `(path, item)` pairs: item is a class index, or anything a batch should carry along.

    Args:
        samples: Pairs; an item of `__getitem__` is `(image, item)`.
        transform: As for `ImageFolder`.
        skip_corrupt: As for `ImageFolder`.
        exclude: As for `ImageFolder`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, object]],
        transform: Callable[[Tensor], Tensor] | None = None,
        skip_corrupt: bool = False,
        exclude: Collection[str] = (),
    ) -> None:
        self.samples = list(samples)
        self.transform = transform
        self._init_reader(skip_corrupt, exclude)


class ImagesToPredict(LabelledImages):
    """As `LabelledImages`, of files that nobody has looked at yet: each has its place, whatever is wrong with it.

    An image that cannot be read is blank, and its name in the item an `Unreadable`, which says why.

    Args:
        samples: Pairs of a path and an item: the path itself, or a tuple that ends in it.
        transform: As for `ImageFolder`.
        img_size: Height and width of the blank.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, object]],
        transform: Callable[[Tensor], Tensor] | None,
        img_size: tuple[int, int],
    ) -> None:
        super().__init__(samples, transform)
        self.img_size = img_size

    def __getitem__(self, index: int) -> tuple[Tensor, object]:
        try:
            return super().__getitem__(index)
        except READ_ERRORS as error:
            blank = torch.zeros(3, *self.img_size, dtype=torch.uint8)
            image = blank if self.transform is None else self.transform(blank)
            return image, unreadable(self.samples[index][1], error)


def is_image_in(root: str | os.PathLike) -> Callable[[str], bool]:
    """Whether a path below `root` is an image, unless its name or a folder of it starts with a dot.

    Such files are left by the system or by programs: `._1.jpg`, `.ipynb_checkpoints/1.jpg`.
    """
    start = len(os.path.join(root, ""))
    return lambda path: (
        path.lower().endswith(EXTENSIONS) and not path[start:].startswith(".") and "/." not in path[start:]
    )


def find_images(path: str | os.PathLike) -> list[str]:
    """The image files that a path names: itself, all below a folder, or all that match a glob; sorted.

    Args:
        path: An image, a folder (searched to the bottom) or a glob (`**` crosses folders).

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The folder or the glob holds no image.
    """
    return find_files(path, EXTENSIONS, "image", "a/*.jpg")
