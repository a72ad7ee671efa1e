"""Scores on several test sets at once: accuracies, mean corruption error, detection of unknown classes.

Letters: B batch, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from datamodules.robustness.sets import TestSet

# Top-1 error of AlexNet on each corruption of ImageNet-C, mean over the severities (arXiv 1903.12261).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
CLEAN = "clean"  # the set of the images as they are, before they were corrupted
_RELATIVE = "imagenet-c"  # the set whose errors are divided by AlexNet's


class RobustnessScores(Metric):
    """Top-1 accuracy on every test set, and how well the confidence separates known from unknown classes.

    `update(logits (B, C), targets (B,), places (B,))` adds a batch; `compute()` gives `{"rows": [...], "summary":
    {...}}`. There is a row `{"set", "part", "severity", "images", "top1"}` for each set that is scored by accuracy. The
    summary has

    * `SET/top1`: top-1 accuracy of a set without corruptions;
    * `SET/mean_error`: top-1 error of a corrupted set, averaged over severities and then over corruptions;
    * `SET/relative_drop`: the share of the accuracy on the same clean images that the corruptions cost, one minus the
      mean accuracy over the clean one. It needs a set `clean`;
    * `imagenet-c/mce`: the same with the error of each corruption divided by AlexNet's, in per cent (AlexNet has 100).
      It needs all 15 corruptions at all 5 severities. All other measures are shares, from 0 to 1;
    * `SET/aupr`: average precision (the area under the precision-recall curve) of detecting unknown classes. The score
      of an image is minus its largest softmax probability over the set's classes.

    Args:
        sets: The test sets; a sample's place is an index into them.
    """

    full_state_update = False

    def __init__(self, sets: Sequence[TestSet]) -> None:
        super().__init__()
        self.sets = list(sets)
        for name in ("right", "seen"):
            self.add_state(name, torch.zeros(len(self.sets), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("scores", [], dist_reduce_fx="cat")  # one for each image of the sets for detection
        self.add_state("members", [], dist_reduce_fx="cat")  # the place of that image's set
        detecting = [i for i, test_set in enumerate(self.sets) if test_set.role != "accuracy"]
        self._detecting = {i: torch.tensor(self.sets[i].classes) for i in detecting}

    def update(self, logits: Tensor, targets: Tensor, places: Tensor) -> None:
        """Adds logits `(B, C)` of images with classes `(B,)` from the sets `(B,)`."""
        for place in places.unique().tolist():
            mine = places == place
            own = logits[mine].float()
            if place in self._detecting:
                known = own[:, self._detecting[place].to(own.device)].softmax(dim=1)
                self.scores.append(-known.amax(dim=1))
                self.members.append(places[mine])
                continue
            self.right[place] += hits_in(self.sets[place], own, targets[mine]).sum()
            self.seen[place] += len(own)

    def compute(self) -> dict[str, Any]:
        """Rows and summary as plain numbers."""
        top1 = (self.right / self.seen).tolist()
        rows = [
            {"set": s.name, "part": s.part, "severity": s.severity, "images": int(self.seen[i]), "top1": top1[i]}
            for i, s in enumerate(self.sets)
            if s.role == "accuracy"
        ]
        return {"rows": rows, "summary": summary_of(rows) | self._detection()}

    def _detection(self) -> dict[str, float]:
        if not self._detecting:
            return {}
        scores, members = dim_zero_cat(self.scores), dim_zero_cat(self.members)
        aupr = {}
        for name in dict.fromkeys(self.sets[place].name for place in self._detecting):
            places = [place for place in self._detecting if self.sets[place].name == name]
            unknown = [place for place in places if self.sets[place].role == "out"]
            mine = torch.isin(members, torch.tensor(places).to(members))
            positive = torch.isin(members[mine], torch.tensor(unknown).to(members))
            # The scores lie in [-1, 0]; torchmetrics would take numbers outside [0, 1] for logits.
            aupr[f"{name}/aupr"] = float(binary_average_precision(1 + scores[mine], positive.long()))
        return aupr


def hits_in(test_set: TestSet, logits: Tensor, targets: Tensor) -> Tensor:
    """Whether logits `(B, C)`, restricted to the set's classes, are largest at the targets `(B,)`; `(B,)` bool."""
    if test_set.classes is None:
        return logits.argmax(dim=1) == targets
    kept = torch.tensor(test_set.classes, device=logits.device)  # restricted before the argmax
    return kept[logits[:, kept].argmax(dim=1)] == targets


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The summary of `RobustnessScores` from its rows, without the detection of unknown classes."""
    summary: dict[str, float] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        if not own[0]["part"]:
            summary[f"{name}/top1"] = own[0]["top1"]
            continue
        errors = corruption_errors(own)
        mean_error = summary[f"{name}/mean_error"] = sum(errors.values()) / len(errors)
        if clean := summary.get(f"{CLEAN}/top1"):
            summary[f"{name}/relative_drop"] = 1 - (1 - mean_error) / clean
        if name == _RELATIVE and set(errors) == set(ALEXNET_ERRORS) and len(own) == 5 * len(errors):
            relative = [error / ALEXNET_ERRORS[part] for part, error in errors.items()]
            summary[f"{name}/mce"] = 100 * sum(relative) / len(relative)
    return summary


def corruption_errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Top-1 error of each corruption, averaged over its severities, from the rows of one corrupted set."""
    by_part: dict[str, list[float]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(1 - row["top1"])
    return {part: sum(errors) / len(errors) for part, errors in by_part.items()}
