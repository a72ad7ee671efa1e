"""Thresholds of a cascade, chosen on validation data to a target cost or a target accuracy, and its curve.

Letters: n images, C classes, G thresholds per stage. A size is a compressed grid such as (3, 3).
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from lookupvit.analysis.cascade.cascade import Cascade, CascadeCosts, CascadeResult, Size
from lookupvit.analysis.cascade.thresholds import Candidates


class CascadePoint(NamedTuple):
    """One point of an accuracy-against-cost curve.

    Attributes:
        cascade: Sizes and thresholds, from the validation data.
        target_cost: Average cost that it was calibrated to.
        val: Its accuracy and cost on the data that it was calibrated on.
        test: The same on other data.
    """

    cascade: Cascade
    target_cost: float
    val: CascadeResult
    test: CascadeResult


class Comparison(NamedTuple):
    """A fixed size, and the cascade that was calibrated to its cost, on the same test images.

    Attributes:
        size: The fixed size.
        fixed: Its accuracy and cost.
        cascade: Calibrated on the validation data.
        result: The cascade's accuracy and cost.
        difference: Accuracy of the cascade minus that of the fixed size.
        standard_error: Standard error of the difference, from the images on which the two disagree.
    """

    size: Size
    fixed: CascadeResult
    cascade: Cascade
    result: CascadeResult
    difference: float
    standard_error: float


def calibrate_cascade(
    logits_by_size: dict[Size, Tensor],
    targets: Tensor,
    costs: CascadeCosts,
    target_cost: float | None = None,
    target_accuracy: float | None = None,
    *,
    confidence: str | None = None,
    temperature: bool | None = None,
    average: bool | None = None,
    max_stages: int = 3,
    grid: int = 64,
) -> Cascade:
    """The best cascade on validation data.

    Args:
        logits_by_size: Logits `(n, C)` of the same images at each size.
        targets: Classes `(n,)`.
        costs: Costs of every size.
        target_cost: Highest average cost; the most accurate cascade within it is chosen, of equals the cheaper one.
        target_accuracy: Least accuracy in [0, 1]; the cheapest cascade that has it is chosen, of equals the more
            accurate one. Give one of the two targets.
        confidence: One of `CONFIDENCES`; None tries each, here and below, and keeps what is best.
        temperature: Whether to divide each size's logits by the temperature that fits these data best.
        average: Whether a stage answers with the mean of the logits so far.
        max_stages: Sizes of a cascade at most.
        grid: Thresholds G to try per stage.

    Returns:
        The cascade; it may consist of one size.

    Raises:
        ValueError: For a target that no cascade reaches, or arguments that do not fit, in one line.
    """
    if (target_cost is None) == (target_accuracy is None):
        raise ValueError("calibrate_cascade needs one of target_cost and target_accuracy")
    candidates = Candidates(logits_by_size, targets, costs, confidence, temperature, average, max_stages, grid)
    if target_cost is not None:
        return candidates.within_cost(target_cost)
    return candidates.with_accuracy(target_accuracy)


def cascade_curve(
    val_logits: dict[Size, Tensor],
    val_targets: Tensor,
    test_logits: dict[Size, Tensor],
    test_targets: Tensor,
    costs: CascadeCosts,
    n_points: int = 20,
    **options,
) -> list[CascadePoint]:
    """Accuracy of cascades against their cost: thresholds from validation data, figures on test data.

    Args:
        val_logits: `(n, C)` at each size, validation images.
        val_targets: Their classes `(n,)`.
        test_logits: `(n', C)` at each size, other images.
        test_targets: Their classes `(n',)`.
        costs: Costs of every size.
        n_points: Target costs, spaced evenly on a logarithmic scale between the cheapest and the dearest size.
        **options: Options of `calibrate_cascade`.

    Returns:
        The points, from cheap to dear on the validation data; targets with the same cascade give one point.

    Raises:
        ValueError: Where validation and test data are the same images, which would flatter the cascade.
    """
    _check_apart(val_logits, val_targets, test_logits, test_targets)
    if n_points < 1:
        raise ValueError(f"n_points={n_points} is no curve: give 1 or more")
    candidates = Candidates(val_logits, val_targets, costs, **options)
    low, high = (f(costs.fixed(size) for size in val_logits) for f in (min, max))
    points: dict[Cascade, CascadePoint] = {}
    for i in range(n_points):
        target = high if i == n_points - 1 else low * (high / low) ** (i / (n_points - 1))  # the last one exactly
        cascade = candidates.within_cost(target)
        if cascade not in points:
            val = cascade.evaluate(val_logits, val_targets, costs)
            points[cascade] = CascadePoint(cascade, target, val, cascade.evaluate(test_logits, test_targets, costs))
    return list(points.values())


def against_fixed(
    val_logits: dict[Size, Tensor],
    val_targets: Tensor,
    test_logits: dict[Size, Tensor],
    test_targets: Tensor,
    costs: CascadeCosts,
    **options,
) -> list[Comparison]:
    """Each fixed size beside the cascade of its cost, on the same test images; see `cascade_curve` for the arguments.

    A cascade is calibrated to the size's cost on the validation data, so that on the test data its cost, which the
    result states, can lie a little above or below. For the cheapest size there is no other cascade than itself.
    """
    _check_apart(val_logits, val_targets, test_logits, test_targets)
    candidates = Candidates(val_logits, val_targets, costs, **options)
    rows = []
    for size in sorted(val_logits, key=costs.fixed):
        single, cascade = Cascade((size,), ()), candidates.within_cost(costs.fixed(size))
        fixed, result = (c.evaluate(test_logits, test_targets, costs) for c in (single, cascade))
        right = [(c.decide(test_logits)[0].argmax(dim=1) == test_targets.cpu()).double() for c in (cascade, single)]
        gain = right[0] - right[1]
        error = gain.std(correction=1).item() / sqrt(len(gain)) if len(gain) > 1 else float("nan")
        rows.append(Comparison(size, fixed, cascade, result, gain.mean().item(), error))
    return rows


def _check_apart(
    val_logits: dict[Size, Tensor], val_targets: Tensor, test_logits: dict[Size, Tensor], test_targets: Tensor
) -> None:
    """Refuses test data that are the validation data: some data sets have one folder for both."""
    if torch.equal(val_targets.cpu(), test_targets.cpu()) and all(
        size in test_logits and torch.equal(value.cpu(), test_logits[size].cpu()) for size, value in val_logits.items()
    ):
        raise ValueError(
            "validation and test data are the same images: calibrate on one half of them and score the other"
        )
