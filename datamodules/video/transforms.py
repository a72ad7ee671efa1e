"""Transforms of whole clips, by torchvision's v2 on `tv_tensors.Video`: every frame gets the same treatment.

Letters: `B` batch, `V` views of a video, `T` frames, `C` = 3 channels, `H, W` pixels, `K` classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datamodules.images.collate import Mix
from datamodules.images.transforms import ResizeToCover, change_colours, random_resized_crop

CROPS = (1, 3)


class CoverJitter(ResizeToCover):
    """Resize, keeping the aspect ratio, to the smallest picture that covers `size` times a random factor.

    Args:
        size: (height, width) in pixels.
        low: Smallest factor.
        high: Largest factor.
        interpolation: Interpolation of the resize.
    """

    def __init__(self, size: tuple[int, int], low: float, high: float, interpolation: v2.InterpolationMode) -> None:
        super().__init__(size, interpolation)
        self.full_size, self.low, self.high = size, low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The size of the resized frames (called by torchvision's `Transform`)."""
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        self.size = tuple(round(side * factor) for side in self.full_size)
        return super().make_params(flat_inputs)


def _to_float(options: dict[str, Any]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(options["mean"], options["std"])]


class TrainTransform:
    """uint8 frames `(T, 3, H, W)` of any size -> one augmented, normalised clip `(3, T, *img_size)`.

    Args:
        img_size: (height, width) in pixels.
        options: From `transform_options`.
        short_side: Fewest and most pixels of the short side, from which a random crop is cut (what covers as much,
            where `img_size` is not square); `None` = the random resized crop of `options`.
    """

    def __init__(
        self, img_size: tuple[int, int], options: dict[str, Any], short_side: tuple[int, int] | None = None
    ) -> None:
        if short_side is None:
            steps = [random_resized_crop(img_size, options)]
        else:
            mode = v2.InterpolationMode(options["interpolation"])
            low, high = (pixels / min(img_size) for pixels in short_side)
            steps = [CoverJitter(img_size, low, high, mode), v2.RandomCrop(img_size)]
        if options["hflip"]:
            steps.append(v2.RandomHorizontalFlip(options["hflip"]))
        steps += change_colours(options)
        steps += _to_float(options)
        if options["random_erasing"]:
            steps.append(v2.RandomErasing(options["random_erasing"], value="random"))
        self.steps = v2.Compose(steps)

    def __call__(self, frames: Tensor) -> Tensor:
        """Augment one clip."""
        return self.steps(tv_tensors.Video(frames)).as_subclass(Tensor).transpose(0, 1)  # (T, 3, ...) -> (3, T, ...)


class EvalTransform:
    """uint8 frames `(T, 3, H, W)` of any size -> views `(crops, 3, T, *img_size)`; nothing is random.

    One crop is the centre; three lie at the start, the middle and the end of the longer side.

    Args:
        img_size: (height, width) in pixels.
        options: From `transform_options`.
        crops: 1 or 3.
    """

    def __init__(self, img_size: tuple[int, int], options: dict[str, Any], crops: int = 1) -> None:
        self.img_size, self.crops = img_size, crops
        cover = tuple(round(side / options["crop_pct"]) for side in img_size)
        self.resize = ResizeToCover(cover, v2.InterpolationMode(options["interpolation"]))
        self.to_float = v2.Compose(_to_float(options))

    def __call__(self, frames: Tensor) -> Tensor:
        """All crops of one clip."""
        video = self.resize(tv_tensors.Video(frames))  # (T, 3, H', W')
        height, width = self.img_size
        room = [have - need for have, need in zip(video.shape[-2:], self.img_size, strict=True)]
        offsets = [(round(room[0] / 2), round(room[1] / 2))]
        if self.crops == 3:
            # The longer side is the one with more room in relation to the crop, which need not be square.
            along = 0 if room[0] / height > room[1] / width else 1
            places = (0, offsets[0][along], room[along])
            offsets = [(place, offsets[0][1]) if along == 0 else (offsets[0][0], place) for place in places]
        views = [self.to_float(F.crop(video, top, left, height, width)) for top, left in offsets]
        return torch.stack([view.as_subclass(Tensor).transpose(0, 1) for view in views])  # (crops, 3, T, H, W)


class CollateVideos:
    """Samples -> one batch of clips, mixed where asked for.

    Args:
        num_classes: As for `Mix`, like the next three.
        mixup: Alpha of MixUp.
        cutmix: Alpha of CutMix, with one rectangle for all frames.
        prob: Probability that a batch is mixed.
    """

    def __init__(self, num_classes: int = 0, mixup: float = 0.0, cutmix: float = 0.0, prob: float = 1.0) -> None:
        self.mix = Mix(num_classes, mixup, cutmix, prob)

    def __call__(self, samples: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Makes a batch of samples `(clip, item, ...)`.

        Returns:
            Clips `(B, ...)` and items: int64 targets `(B,)` without mixing, soft float targets `(B, K)` with it, a list
            where items are strings.
        """
        clips, *items = default_collate(samples)
        if not self.mix:
            return clips, *(list(item) if isinstance(item, tuple) else item for item in items)
        # MixUp and CutMix know 5-D batches as videos only: (B, 3, T, H, W) -> (B, T, 3, H, W), and back.
        video, targets = self.mix(tv_tensors.Video(clips.transpose(1, 2)), *items)
        return video.as_subclass(Tensor).transpose(1, 2).contiguous(), targets
