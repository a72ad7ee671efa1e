"""COCO's masks of objects: polygons and run lengths -> pixels.

Polygons are drawn by pycocotools. Run lengths are decoded here: pycocotools reads memory that is not its own where
they do not fill the mask.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from datamodules.loading.untrusted import check_pixels


def run_lengths(counts: str | Sequence[int]) -> list[int]:
    """The lengths of the runs of zeros and ones, in turn, column by column.

    Args:
        counts: A list, or COCO's string: five bits to a character, and from the third run on the difference to the run
            before the last.

    Raises:
        ValueError: If they are neither.
    """
    if not isinstance(counts, str):
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("its run lengths are not whole numbers from 0 on")
        return list(counts)
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last part of a number
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift or min(runs, default=0) < 0:
        raise ValueError("its compressed run lengths are damaged")
    return runs


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of an object.

    Args:
        segmentation: COCO's: a list of polygons `[x, y, x, y, ...]`, or a mapping of `size` and `counts`.
        height: Of the image.
        width: Of the image.

    Returns:
        uint8 `(height, width)`, 1 in the object.

    Raises:
        ValueError: If it is none of these, or of another size than the image; one phrase.
    """
    check_pixels(width, height)
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(
                f"its mask has the size {segmentation.get('size')}, its image [{height}, {width}] (height, width)"
            )
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, list)):
            raise ValueError("its mask has no run lengths (counts)")
        runs = run_lengths(counts)
        if sum(runs) != height * width:
            raise ValueError(f"its run lengths make {sum(runs)} pixels, its image has {height * width}")
        ones = np.arange(len(runs), dtype=np.uint8) & 1
        return np.repeat(ones, runs).reshape(width, height).T  # column by column
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has neither polygons nor run lengths (segmentation)")
    for polygon in segmentation:
        good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not good or not all(type(value) in (int, float) and abs(value) < 1e6 for value in polygon):
            raise ValueError("a polygon of it is no list of three or more points [x, y, x, y, ...]")
        points = np.reshape(polygon, (-1, 2))
        if np.abs(points - np.roll(points, 1, 0)).sum() > 4 * (height + 1) * (width + 1):
            raise ValueError("a polygon of it is too long for its image")  # pycocotools stores every step of it
    return coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width)))
