"""Samples to batches: corrupt images left out, MixUp and CutMix with soft targets.

Letters: `B` batch, `C` classes, `H, W` height and width.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from datamodules.images.transforms import Pipeline

T = TypeVar("T")


def mixing(options: dict[str, Any]) -> dict[str, float]:
    """The arguments of `Mix` but for the number of classes, taken from `transform_options`."""
    return {"mixup": options["mixup"], "cutmix": options["cutmix"], "prob": options["mix_prob"]}


class Mix:
    """MixUp and CutMix of whole batches, with soft targets.

    Args:
        num_classes: Number of classes `C` of the soft targets.
        mixup: Alpha of MixUp, 0 = off.
        cutmix: Alpha of CutMix, 0 = off; with both, each batch draws one of them.
        prob: Probability that a batch is mixed.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float, prob: float) -> None:
        self.num_classes, self.prob = num_classes, prob
        self.mixes = [
            mix(alpha=alpha, num_classes=num_classes)
            for mix, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]

    def __bool__(self) -> bool:
        return bool(self.mixes)

    def __call__(self, batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch `(B, ...)` and its targets `(B,)` int64; targets become soft, `(B, C)`, mixed or not."""
        if torch.rand(()) < self.prob:
            return v2.RandomChoice(self.mixes)(batch, targets)
        return batch, torch.nn.functional.one_hot(targets, self.num_classes).to(batch.dtype)  # (B,) -> (B, C)


def without_corrupt(samples: Sequence[T | None]) -> list[T]:
    """The samples of a batch without the `None` of images left out.

    Raises:
        ValueError: Nothing is left of the batch.
    """
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        raise ValueError(
            f"every one of the {len(samples)} images of a batch is corrupt (each was named in a warning); "
            "repair the data set or set a larger data.batch_size"
        )
    return kept


class Collate:
    """Samples -> one batch; drops the `None` of images left out, and mixes images and targets where asked to.

    Args:
        num_classes: As for `Mix`, like the next three.
        mixup: Alpha of MixUp.
        cutmix: Alpha of CutMix.
        prob: Probability that a batch is mixed.
        pipeline: Makes the batch of images that went through its `sample`; None = the images are stacked as they are.
    """

    def __init__(
        self,
        num_classes: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.mix, self.pipeline = Mix(num_classes, mixup, cutmix, prob), pipeline

    def __call__(self, samples: list[tuple[Tensor, Any] | None]) -> tuple[Tensor, Any]:
        """Makes a batch of samples `(image (3, H, W), item)` or `None`; a `ValueError` if nothing is left of them.

        Returns:
            Images `(B, 3, H, W)` and items: int64 targets `(B,)` without mixing, soft float targets `(B, C)` with it,
            a list where items are strings.
        """
        kept = without_corrupt(samples)
        images, items = [image for image, _ in kept], default_collate([item for _, item in kept])
        images = torch.stack(images) if self.pipeline is None else self.pipeline.stack(images)
        return self.mix(images, items) if self.mix else (images, items)
