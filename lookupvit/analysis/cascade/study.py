"""The cascade beside the fixed sizes: thresholds from some images, every figure from others."""

from dataclasses import dataclass

from torch import Tensor

from lookupvit.analysis.cascade.calibration import CascadePoint, Comparison, against_fixed, cascade_curve
from lookupvit.analysis.cascade.cascade import CascadeResult, cascade_costs
from lookupvit.analysis.sweep import Size, Subject, halves
from lookupvit.analysis.sweep_plots import Point, Series
from lookupvit.checkpoints.fingerprint import fingerprint
from lookupvit.grid import size_name


@dataclass(frozen=True)
class CascadeStudy:
    """What a cascade over the sizes of one model reaches.

    Attributes:
        label: The model.
        img_size: (height, width) in pixels.
        thresholds_from: The images that the thresholds were calibrated on, in words.
        figures_from: The images behind every accuracy here, in words.
        calibration_images: How many of the former.
        images: How many of the latter.
        points: The curve, by rising cost that was aimed at.
        comparisons: For each fixed size, the cascade that may cost as much.
        model: Fingerprint of the model's weights.
    """

    label: str
    img_size: tuple[int, int]
    thresholds_from: str
    figures_from: str
    calibration_images: int
    images: int
    points: tuple[CascadePoint, ...]
    comparisons: tuple[Comparison, ...]
    model: str = ""

    def as_dict(self) -> dict:
        """Plain data; costs in multiply-adds per image, accuracies in percent."""
        return {
            "model": self.label,
            "img_size": list(self.img_size),
            "thresholds_from": self.thresholds_from,
            "figures_from": self.figures_from,
            "calibration_images": self.calibration_images,
            "images": self.images,
            "curve": [{**_result(point.test), "cascade": point.cascade.as_dict()} for point in self.points],
            "against_fixed": [
                {
                    "size": list(one.size),
                    "fixed": _result(one.fixed),
                    "cascade": {**_result(one.result), **one.cascade.as_dict()},
                    "difference": 100 * one.difference,
                    "standard_error": 100 * one.standard_error,
                }
                for one in self.comparisons
            ],
        }

    def series(self, unit: float) -> list[Series]:
        """The fixed sizes and the curve, over the same images, for a plot whose axis is in `unit` multiply-adds."""
        fixed = tuple(
            Point(one.fixed.cost / unit, 100 * one.fixed.accuracy, size_name(one.size)) for one in self.comparisons
        )
        curve = tuple(Point(point.test.cost / unit, 100 * point.test.accuracy) for point in self.points)
        return [Series(self.label, fixed), Series(self.label, curve, curve=True)]


def study_cascade(
    label: str,
    subject: Subject,
    img_size: tuple[int, int],
    logits: dict[Size, Tensor],
    targets: Tensor,
    validation: tuple[dict[Size, Tensor], Tensor] | None = None,
) -> CascadeStudy:
    """Calibrates cascades over the sizes of a model and scores them on images that the thresholds have not seen.

    Args:
        label: Name of the model.
        subject: The model, with two or more sizes.
        img_size: (height, width) in pixels.
        logits: `(n, C)` by size.
        targets: `(n,)`.
        validation: Logits and targets to calibrate on; None: every other one of the images above, and the figures
            are of the rest.

    Raises:
        ValueError: If there are not two images.
    """
    if validation is None:
        if len(targets) < 2:
            raise ValueError("a cascade needs at least two images, to calibrate on one half: raise --limit")
        first, rest = halves(len(targets))
        validation = {size: value[first] for size, value in logits.items()}, targets[first]
        logits, targets = {size: value[rest] for size, value in logits.items()}, targets[rest]
        words = ("every other scored image", "the other scored images")
    else:
        words = ("the validation split", "all scored images")
    costs = cascade_costs(subject.model, list(subject.sizes), img_size, subject.head)
    data = (*validation, logits, targets, costs)
    points, comparisons = cascade_curve(*data), against_fixed(*data)
    counts, weights = (len(validation[1]), len(targets)), fingerprint(subject.model.state_dict())
    return CascadeStudy(label, img_size, *words, *counts, tuple(points), tuple(comparisons), weights)


def _result(result: CascadeResult) -> dict:
    return {"top1": 100 * result.accuracy, "macs": result.cost, "shares": list(result.shares)}
