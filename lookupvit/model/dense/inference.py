"""How a segmenter looks at an image: whole or through sliding windows, mirrored, at several scales.

Letters: B batch, (Y, X) pixels, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.checks import check_choice
from lookupvit.grid import Size, to_2tuple

MODES = ("whole", "slide")


@dataclass(frozen=True)
class View:
    """The views of an image whose logits are averaged.

    Attributes:
        mode: "whole", or "slide" for windows that overlap.
        window: Window in pixels, (y, x); None for the model's native image size.
        stride: Distance between windows, (y, x); None for two thirds of the window.
        flip: Whether the mirror image is seen too.
        scales: Factors on the size of the image; one view each.
    """

    mode: str = "whole"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def of(
        cls,
        mode: str,
        window: int | Sequence[int] | None,
        stride: int | Sequence[int] | None,
        flip: bool,
        scales: Sequence[float],
    ) -> "View":
        """From options of the command line.

        Raises:
            ValueError: For options that do not fit; one line.
        """
        check_choice("eval_mode", mode, MODES)
        if mode == "whole" and (window or stride):
            raise ValueError(
                "eval_window and eval_stride are of sliding windows: set eval_mode slide, or leave them out"
            )
        pair = [None if value is None else to_2tuple(value) for value in (window, stride)]
        if None not in pair and any(step > side for side, step in zip(*pair, strict=True)):
            raise ValueError(f"eval_stride {pair[1]} leaves gaps between windows of {pair[0]}: give at most the window")
        if not scales or min(scales) <= 0:
            raise ValueError(f"eval_scales {list(scales)}: give factors above 0, such as [0.75, 1.0, 1.25]")
        return cls(mode, *pair, flip, tuple(float(scale) for scale in scales))


def segment(model: nn.Module, images: Tensor, sizes: Sequence[Size | None], view: View = View()) -> list[Tensor]:
    """The average of the views' logits at several compressed sizes; each view is embedded once for all sizes.

    Args:
        model: A `Segmenter`.
        images: `(B, 3, Y, X)`, normalised, without padding.
        sizes: Compressed sizes; None for the model's own.
        view: What is averaged.

    Returns:
        Logits `(B, C, Y, X)` for each size, float32.
    """
    whole = images.shape[2:]
    totals: list[Tensor | None] = [None] * len(sizes)
    for scale, mirrored in product(view.scales, (False, True) if view.flip else (False,)):
        seen = images
        if scale != 1:
            pixels = [max(1, round(side * scale)) for side in whole]
            seen = F.interpolate(images, size=pixels, mode="bilinear", align_corners=False, antialias=True)
        found = _one_view(model, seen.flip(3) if mirrored else seen, sizes, view)
        for place, logits in enumerate(found):
            logits = logits.flip(3) if mirrored else logits
            if scale != 1:
                logits = F.interpolate(logits, size=whole, mode="bilinear", align_corners=False)
            totals[place] = logits if totals[place] is None else totals[place] + logits
    return [total / (len(view.scales) * (1 + view.flip)) for total in totals]


def segment_batch(
    model: nn.Module,
    batch: Mapping[str, Any],
    sizes: Sequence[Size | None],
    view: View = View(),
    count: int | None = None,
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """As `segment`, of a batch whose images were padded at the bottom and on the right: each is seen without that.

    Args:
        model: A `Segmenter`.
        batch: "images" `(B, 3, Y, X)`, and "sizes" `(B, 2)`, the true height and width of each.
        sizes: Compressed sizes.
        view: What is averaged.
        count: Only so many images of the batch; None for all.

    Yields:
        Places in the batch of the images of one true size (y, x), and their logits `(b, C, y, x)` for each size.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (height, width) in enumerate(batch["sizes"].tolist()[:count]):
        groups.setdefault((height, width), []).append(place)
    for (height, width), places in groups.items():
        yield places, segment(model, batch["images"][places, :, :height, :width], sizes, view)


def _one_view(model: nn.Module, images: Tensor, sizes: Sequence[Size | None], view: View) -> list[Tensor]:
    pixels = images.shape[2:]
    if view.mode == "whole":
        return _logits(model, images, sizes)
    window = view.window or model.img_size
    stride = view.stride or tuple(max(1, 2 * side // 3) for side in window)
    places = [starts(*sides) for sides in zip(pixels, window, stride, strict=True)]
    totals, count = [], images.new_zeros(pixels, dtype=torch.float32)
    for y, x in product(*places):
        part = (..., slice(y, y + window[0]), slice(x, x + window[1]))
        found = _logits(model, images[part], sizes)
        totals = totals or [logits.new_zeros(*logits.shape[:2], *pixels) for logits in found]
        for total, logits in zip(totals, found, strict=True):
            total[part] += logits
        count[part] += 1
    return [total / count for total in totals]


def _logits(model: nn.Module, images: Tensor, sizes: Sequence[Size | None]) -> list[Tensor]:
    return [model.to_pixels(cells.float(), images.shape[2:]) for cells in model.forward_maps(images, sizes)]


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, and the last so that it ends with the image."""
    return [0] if side <= window else [*range(0, side - window, stride), side - window]
