"""Joint transforms: whatever is done to the place of pixels is done to the image, its masks and its boxes alike.

They are `torchvision.transforms.v2` on `tv_tensors`. Letters: `H, W` height and width, `n` objects of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datamodules.images.transforms import change_colours

Window = tuple[int, int, int, int]  # top, left, height, width


def crop_and_resize(inpt: Any, window: Window, size: tuple[int, int]) -> Any:
    """A window of an image, a mask or boxes, resized.

    An image is resized bilinearly with antialiasing. A mask takes the nearest pixel by its centre: torchvision's own
    resize of masks takes the corner, which shifts a mask by up to half a pixel against its image.

    Args:
        inpt: A `tv_tensors` `Image`, `Mask` or `BoundingBoxes`; anything else passes through.
        window: Pixels of the input.
        size: (height, width) of the output.
    """
    if isinstance(inpt, tv_tensors.Mask):
        part = F.crop(inpt.as_subclass(Tensor), *window)  # (H, W) or (n, H, W)
        if part.shape[-2:] != size and part.numel():
            mode = v2.InterpolationMode.NEAREST_EXACT
            flat = part.reshape(-1, 1, *part.shape[-2:])  # (H, W) or (n, H, W) -> (n, 1, H, W)
            part = F.resize_image(flat, list(size), interpolation=mode).reshape(*part.shape[:-2], *size)
        return tv_tensors.Mask(part if part.numel() else part.new_zeros(*part.shape[:-2], *size))
    if isinstance(inpt, tv_tensors.Image | tv_tensors.BoundingBoxes):
        return F.resize(F.crop(inpt, *window), list(size), antialias=True)
    return inpt


class JitterCrop(v2.Transform):
    """Random scale, then a random crop of at most `size`, in one step: only what the crop shows is resized.

    The scale is drawn evenly from `scale`. What 1 means, `fit` says: None = the image's own size; a number = that many
    pixels of its shorter side; `"inside"` = the largest image that fits into `size`, as large-scale jitter has it.
    An image that is smaller than `size` after scaling stays so.

    Args:
        size: (height, width) in pixels.
        scale: Least and greatest factor.
        fit: What a factor of 1 means.
        max_class_ratio: With a mask: the crop is drawn anew, up to ten times, while one class has more than this part
            of its labelled pixels; 1 = never.
        ignore_index: Label of pixels that do not count.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        fit: int | str | None = None,
        max_class_ratio: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.fit = size, scale, fit
        self.max_class_ratio, self.ignore_index = max_class_ratio, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The window and its new size (called by torchvision's `Transform`)."""
        height, width = F.get_size(flat_inputs[0])
        factor = self.scale[0] + float(torch.rand(())) * (self.scale[1] - self.scale[0])
        if self.fit == "inside":
            factor *= min(self.size[0] / height, self.size[1] / width)
        elif self.fit is not None:
            factor *= self.fit / min(height, width)
        scaled = [max(1, round(side * factor)) for side in (height, width)]
        size = tuple(min(most, side) for most, side in zip(self.size, scaled, strict=True))
        masks = [part for part in flat_inputs if isinstance(part, tv_tensors.Mask) and part.ndim == 2]
        for _ in range(10 if masks and self.max_class_ratio < 1 else 1):
            window = self._draw_window((height, width), scaled, size)
            if not masks or self._is_mixed(F.crop(masks[0].as_subclass(Tensor), *window)):
                break
        return {"window": window, "size": size}

    @staticmethod
    def _draw_window(full: Sequence[int], scaled: Sequence[int], size: Sequence[int]) -> Window:
        begins, lengths = [], []
        for whole, large, part in zip(full, scaled, size, strict=True):
            begin = int(torch.randint(large - part + 1, ()))
            first, last = round(begin * whole / large), round((begin + part) * whole / large)
            first = min(first, whole - 1)
            begins.append(first)
            lengths.append(max(1, last - first))
        return begins[0], begins[1], lengths[0], lengths[1]

    def _is_mixed(self, mask: Tensor) -> bool:
        if self.max_class_ratio >= 1:
            return True
        counts = torch.bincount(mask.flatten().long(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return bool(counts.max() <= self.max_class_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize one input (called by torchvision's `Transform`)."""
        return crop_and_resize(inpt, params["window"], params["size"])


class ResizeWhole(v2.Transform):
    """Resize for evaluation: to an exact size, or by the shorter side with a limit for the longer one.

    Args:
        exact: (height, width), or None.
        short_side: Pixels, or None = the image's own size.
        max_size: Most pixels of the longer side.
    """

    def __init__(
        self, exact: tuple[int, int] | None = None, short_side: int | None = None, max_size: int | None = None
    ) -> None:
        super().__init__()
        self.exact, self.short_side, self.max_size = exact, short_side, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The whole as a window, and its new size (called by torchvision's `Transform`)."""
        height, width = F.get_size(flat_inputs[0])
        factor = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(height, width))
        size = self.exact or tuple(max(1, round(side * factor)) for side in (height, width))
        return {"window": (0, 0, height, width), "size": size}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input (called by torchvision's `Transform`)."""
        same = isinstance(inpt, tv_tensors.TVTensor) and tuple(F.get_size(inpt)) == params["size"]
        return inpt if same else crop_and_resize(inpt, params["window"], params["size"])


def train_steps(crop: JitterCrop, options: dict[str, Any]) -> list[v2.Transform]:
    """A jittered crop, a flip, and a change of the image's colours.

    Args:
        crop: The first step.
        options: From `images.transforms.transform_options`.
    """
    flip = [v2.RandomHorizontalFlip(options["hflip"])] if options["hflip"] else []
    return [crop, *flip, *change_colours(options)]


def keep_visible(target: dict[str, Any]) -> dict[str, Any]:
    """After a crop: without objects of which nothing is left, and with boxes and areas that are those of the masks.

    Args:
        target: `boxes (n, 4)`, `labels`, `iscrowd`, `area` `(n,)`, and perhaps `masks (n, H, W)`.
    """
    masks = target.get("masks")
    if masks is not None:
        seen = masks.flatten(1).any(1).bool() if len(masks) else torch.zeros(0, dtype=torch.bool)  # (n, H, W) -> (n,)
        kept = masks[seen].as_subclass(Tensor)
        boxes = masks_to_boxes(kept) if len(kept) else torch.zeros(0, 4)
        boxes[:, 2:] += 1  # it gives the last pixel, and a box ends behind that
        target = target | {name: target[name][seen] for name in ("labels", "iscrowd")}
        target["masks"] = tv_tensors.Mask(kept)
        target["area"] = kept.flatten(1).sum(1).float() if len(kept) else torch.zeros(0)
        target["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(masks.shape[-2:]))
    target = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_per_object)(target)
    if masks is None:
        sides = target["boxes"].as_subclass(Tensor)
        target["area"] = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    return target


def _per_object(inputs: Any) -> tuple[Tensor, ...]:
    target = inputs[0] if isinstance(inputs, tuple) else inputs
    return target["labels"], target["iscrowd"], target["area"]
