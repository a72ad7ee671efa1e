"""Semantic masks: a PNG of numbers -> one class per pixel, checked.

Letters: `H, W` height and width.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.dense.base import BadSampleError
from datamodules.images.decode import CorruptImageError
from datamodules.loading.retry import with_retries
from datamodules.loading.untrusted import check_pixels

IGNORE = 255
MASK_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".gif")
_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # none that changes numbers
_NUMBERS = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I")  # PIL's modes of one number per pixel
_OUTSIDE = -1


def palette_of(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ much, one for each class: those of Pascal VOC's colour map, without its black.

    The bits of the number, three at a time, are the highest bits of red, green and blue.
    """
    colours = []
    for number in range(1, count + 1):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        colours.append(tuple(channels))
    return colours


def read_numbers(path: str | os.PathLike) -> np.ndarray:
    """The pixels of a mask file as they are, `(H, W)`: of a palette the indices.

    Raises:
        BadSampleError: If the file is missing, damaged, or has colours in place of numbers.
    """
    return _read(path, _NUMBERS, "colours in place of class numbers; save one number per pixel (8-bit grey or palette)")


def read_colours(path: str | os.PathLike) -> np.ndarray:
    """The pixels of a mask whose numbers are written as colours, `(H, W, 3)`; raises what `read_numbers` does."""
    return _read(path, ("RGB",), "no red, green and blue, in which panoptic labels are written; get the file again")


def _read(path: str | os.PathLike, modes: tuple[str, ...], otherwise: str) -> np.ndarray:
    try:
        return with_retries(lambda: _open(os.fspath(path), modes, otherwise))
    except FileNotFoundError:
        raise BadSampleError(f"no mask {str(path)!r}; add it, or leave its image out with data.exclude") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, CorruptImageError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSampleError(
            f"cannot decode the mask {str(path)!r}: {reason}; replace it, or leave its image out with data.exclude"
        ) from error


def _open(path: str, modes: tuple[str, ...], otherwise: str) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        check_pixels(*image.size)
        if image.mode not in modes:
            raise BadSampleError(f"the mask {path!r} has {image.mode} pixels, {otherwise}")
        return np.asarray(image)


class ClassMap:
    """From the numbers in mask files to classes.

    Args:
        num_classes: At most 255: 255 is the ignored index.
        numbers: Class of each number; None = number k is class k.
        ignored: Numbers without a class, besides 255.
    """

    def __init__(self, num_classes: int, numbers: Mapping[int, int] | None = None, ignored: Iterable[int] = ()) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"{num_classes} classes: semantic masks have 1 to {IGNORE}, because {IGNORE} is ignored")
        self.num_classes = num_classes
        self.table = torch.full((65536,), _OUTSIDE, dtype=torch.int16)  # of any 16-bit number
        self.table[IGNORE] = IGNORE
        for number, label in (numbers or {label: label for label in range(num_classes)}).items():
            self.table[number] = label
        for number in ignored:
            self.table[number] = IGNORE

    def __call__(self, numbers: np.ndarray, path: str) -> Tensor:
        """Numbers `(H, W)` -> classes `(H, W)`, uint8, with 255 where there is none.

        Raises:
            BadSampleError: A number is neither a class nor ignored.
        """
        flat = numbers.astype(np.int64)
        inside = (flat >= 0) & (flat < len(self.table))
        labels = self.table[torch.from_numpy(np.where(inside, flat, 0))]  # (H, W)
        outside = (labels == _OUTSIDE).numpy() | ~inside
        if outside.any():
            strange = np.unique(flat[outside]).tolist()
            names = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
            known = self.table != _OUTSIDE
            ends = known[:IGNORE].nonzero().flatten().tolist()
            raise BadSampleError(
                f"the mask {path!r} has the number {names} at {int(outside.sum())} pixels; there are "
                f"{self.num_classes} classes, numbered {ends[0]} to {ends[-1]}, and {IGNORE} is ignored: correct the "
                "mask, or name numbers without a class in data.unlabelled"
            )
        return labels.to(torch.uint8)


def check_same_size(mask: Sequence[int], image: Sequence[int], mask_path: str, image_path: str) -> None:
    """Raises a `BadSampleError` unless a mask (height, width) is as large as its image."""
    if tuple(mask) != tuple(image):
        (h, w), (y, x) = mask, image
        raise BadSampleError(
            f"the mask {mask_path!r} has {w} x {h} pixels, its image {image_path!r} {x} x {y} (width x height, after "
            "the EXIF orientation); give both one size, or leave the image out with data.exclude"
        )
