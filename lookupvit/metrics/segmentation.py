"""Scores of semantic segmentation, all from one confusion matrix.

Letters: C classes, P pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from lookupvit.grid import Size, size_name

IGNORED = 255  # class of pixels that do not count
_MAIN = "main"  # the key of the main size, whose scores have no size in their names


class SegmentationMetrics(MulticlassConfusionMatrix):
    """torchmetrics' confusion matrix over all pixels of all images, from which every score is computed.

    Args:
        num_classes: C.
        ignore_index: Class of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = IGNORED) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def compute(self) -> dict[str, Tensor]:
        """The scores, each a fraction.

        Returns:
            "miou", the mean of the intersections over unions of the classes that occur in truth or prediction;
            "pixel_accuracy"; "class_accuracy", the mean recall of the classes that occur in the truth; and "iou"
            `(C,)`, NaN for a class that does not occur.
        """
        matrix = super().compute().double()  # (truth, prediction)
        hits, truth, found = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        iou = hits / (truth + found - hits)  # 0 / 0 is NaN
        return {
            "miou": torch.nanmean(iou),
            "pixel_accuracy": hits.sum() / matrix.sum(),
            "class_accuracy": torch.nanmean(hits / truth),
            "iou": iou,
        }


class SegmentationScores(nn.Module):
    """The metrics of one stage.

    Args:
        stage: `"val"` or `"test"`, the beginning of every name.
        main: The size whose scores have no size in their names; None for the model's own.
        sizes: Sizes that are reported under their own names, such as `val/miou@6x8`.
        num_classes: C.
        ignore_index: Class of pixels that do not count.
    """

    def __init__(self, stage: str, main: Size | None, sizes: list[Size], num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.stage, self.main, self.sizes = stage, main, sizes
        keys = [self._key(size) for size in self.evaluated]
        self.metrics = nn.ModuleDict({key: SegmentationMetrics(num_classes, ignore_index) for key in keys})
        self.losses = nn.ModuleDict({key: MeanMetric() for key in keys})

    @property
    def evaluated(self) -> list[Size | None]:
        """Every size that an evaluation runs at, the main one first."""
        return [self.main, *(size for size in self.sizes if size != self.main)]

    def update(self, size: Size | None, classes: Tensor, masks: Tensor, loss: Tensor, pixels: int) -> None:
        """Adds images of one size in pixels.

        Args:
            size: The compressed size that they were run at.
            classes: Predicted, `(B, Y, X)`.
            masks: True, `(B, Y, X)`.
            loss: A scalar.
            pixels: Number of pixels that count, the loss's weight.
        """
        key = self._key(size)
        self.metrics[key].update(classes, masks)
        if pixels:
            self.losses[key].update(loss, weight=pixels)

    def compute(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Every score by the name to log it under, and begins anew.

        Args:
            names: Of the classes; their numbers by default.
        """
        found: dict[str, Tensor] = {}
        for size in self.evaluated:
            key = self._key(size)
            scores = self.metrics[key].compute()
            by_class = scores.pop("iou")
            scores["loss"] = self.losses[key].compute()
            at = "" if key == _MAIN else f"@{key}"
            found |= {f"{self.stage}/{name}{at}": value.float() for name, value in scores.items()}
            if key == _MAIN:
                if size in self.sizes:  # also under the size's own name, for tables and plots
                    named = (f"{self.stage}/{{}}@{size_name(size)}").format
                    found |= {named(name): value.float() for name, value in scores.items() if name != "loss"}
                labels = names or [str(number) for number in range(len(by_class))]
                for label, value in zip(labels, by_class.float(), strict=True):
                    if not torch.isnan(value):
                        found[f"{self.stage}/iou_{label}"] = value
            self.metrics[key].reset()
            self.losses[key].reset()
        return found

    def _key(self, size: Size | None) -> str:
        return _MAIN if size == self.main else size_name(size)
