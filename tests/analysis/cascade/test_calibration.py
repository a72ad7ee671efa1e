"""Calibration of cascades: known answers, and every threshold tried one by one."""

from itertools import combinations, pairwise, product
from math import sqrt

import pytest
import torch

from lookupvit.analysis.cascade.calibration import against_fixed, calibrate_cascade, cascade_curve
from lookupvit.analysis.cascade.cascade import Cascade, CascadeCosts

A, B, C = (1, 1), (2, 2), (4, 4)
COSTS = CascadeCosts(2.0, {A: 1.0, B: 4.0, C: 10.0})
PLAIN = {"confidence": "probability", "temperature": False, "average": False}


def sure(targets: torch.Tensor, right: list[bool], probability: list[float]) -> torch.Tensor:
    """Two-class logits that name the target or the other class with the given probability."""
    answer = torch.where(torch.tensor(right), targets, 1 - targets)
    p = torch.tensor(probability)
    return torch.stack([p, 1 - p], 1).log().gather(1, torch.stack([answer, 1 - answer], 1))


def noisy(n: int, seed: int) -> tuple[dict, torch.Tensor]:
    """Logits of four classes whose signal grows with the size."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (n,), generator=draw)
    base = torch.randn(n, 4, generator=draw)
    one_hot = torch.nn.functional.one_hot(targets, 4)
    signal = {A: 1.0, B: 1.8, C: 2.4}
    return {s: base + 0.7 * torch.randn(n, 4, generator=draw) + v * one_hot for s, v in signal.items()}, targets


def brute_force(logits, targets, costs, sizes=(A, B, C)):
    """(accuracy, cost) of every cascade of one to three sizes, image by image."""
    n = len(targets)
    rows = {}
    for size, value in logits.items():
        answers = zip(value.double().softmax(1), targets, strict=True)
        rows[size] = [(p.max().item(), p.argmax().item() == t.item()) for p, t in answers]
    for stages in (1, 2, 3):
        for chain in combinations(sizes, stages):
            grids = []
            for size in chain[:-1]:
                values = sorted({p for p, _ in rows[size]})
                grids.append([(a + b) / 2 for a, b in pairwise(values)] + [2.0])
            for thresholds in product(*grids):
                right, cost = 0, n * costs.shared
                for i in range(n):
                    for stage, size in enumerate(chain):
                        cost += costs.stages[size]
                        p, good = rows[size][i]
                        if stage == stages - 1 or p >= thresholds[stage]:
                            right += good
                            break
                yield right / n, cost / n


def test_known_answer():
    # A is right where it is sure of its answer; B always is
    targets = torch.tensor([0, 1, 0, 1])
    logits = {
        A: sure(targets, [True, True, False, False], [0.95, 0.9, 0.6, 0.55]),
        B: sure(targets, [True] * 4, [0.99] * 4),
    }
    costs = CascadeCosts(2.0, {A: 1.0, B: 4.0})
    cascade = calibrate_cascade(logits, targets, costs, target_cost=5.0, **PLAIN)
    assert cascade.sizes == (A, B) and 0.6 < cascade.thresholds[0] < 0.9
    assert cascade.evaluate(logits, targets, costs) == (1.0, 2 + 1 + 4 / 2, (0.5, 0.5))
    # one budget below, one image of the two goes on; the cheapest budget leaves A alone
    assert calibrate_cascade(logits, targets, costs, target_cost=4.0, **PLAIN).evaluate(logits, targets, costs) == (
        0.75,
        4.0,
        (0.75, 0.25),
    )
    assert calibrate_cascade(logits, targets, costs, target_cost=3.0).sizes == (A,)
    # from an accuracy: the same three; a perfect one costs 5, not the 6 of B alone
    for accuracy, cost in ((0.5, 3.0), (0.6, 4.0), (1.0, 5.0)):
        cascade = calibrate_cascade(logits, targets, costs, target_accuracy=accuracy, **PLAIN)
        assert cascade.evaluate(logits, targets, costs).cost == cost


def test_ties_go_to_the_cheaper_one():
    targets = torch.tensor([0, 1, 0])
    logits = {size: sure(targets, [True] * 3, [0.9, 0.8, 0.7]) for size in (A, B, C)}
    assert calibrate_cascade(logits, targets, COSTS, target_cost=100.0).sizes == (A,)


@pytest.mark.parametrize("seed", [0, 1])
def test_search_is_exhaustive(seed):
    logits, targets = noisy(14, seed)
    every = list(brute_force(logits, targets, COSTS))
    for target in (3.0, 4.5, 6.0, 8.0, 12.0, 20.0):
        result = calibrate_cascade(logits, targets, COSTS, target_cost=target, **PLAIN).evaluate(logits, targets, COSTS)
        accuracy = max(a for a, cost in every if cost <= target + 1e-9)
        cost = min(c for a, c in every if a == accuracy)
        assert (result.accuracy, result.cost) == (pytest.approx(accuracy), pytest.approx(cost))
    for target in (0.3, 0.5, max(a for a, _ in every)):
        cascade = calibrate_cascade(logits, targets, COSTS, target_accuracy=target, **PLAIN)
        result = cascade.evaluate(logits, targets, COSTS)
        cost = min(c for a, c in every if a >= target - 1e-9)
        assert result.cost == pytest.approx(cost)
        assert result.accuracy == pytest.approx(max(a for a, c in every if c <= cost + 1e-9 and a >= target - 1e-9))


def test_a_coarse_grid_is_spread_over_the_images():
    logits, targets = noisy(1000, 0)
    exact, coarse = (
        calibrate_cascade(logits, targets, COSTS, target_cost=7.0, max_stages=2, grid=grid, **PLAIN)
        for grid in (1000, 20)
    )
    results = [c.evaluate(logits, targets, COSTS) for c in (exact, coarse)]
    assert results[1].cost <= 7.0 and results[0].accuracy - 0.02 < results[1].accuracy <= results[0].accuracy


def test_options_that_are_left_open_are_never_worse_on_their_data():
    logits, targets = noisy(400, 3)

    def accuracy(**options):
        cascade = calibrate_cascade(logits, targets, COSTS, target_cost=8.0, grid=16, **options)
        return cascade.evaluate(logits, targets, COSTS).accuracy

    choices = product(("probability", "margin", "entropy"), (False, True), (False, True))
    best = max(accuracy(confidence=c, temperature=t, average=a) for c, t, a in choices)
    assert accuracy() == best
    averaged = calibrate_cascade(logits, targets, COSTS, target_cost=8.0, average=True, temperature=True)
    assert averaged.average and averaged.temperatures != (1.0,) * len(averaged.sizes)


def test_curve():
    val, val_targets = noisy(600, 0)
    test, test_targets = noisy(600, 1)
    points = cascade_curve(val, val_targets, test, test_targets, COSTS, n_points=9, grid=24, **PLAIN)
    assert 4 < len(points) <= 9
    assert points[0].cascade == Cascade((A,), ()) and points[-1].target_cost == 12.0
    for point in points:
        assert point.val == point.cascade.evaluate(val, val_targets, COSTS)
        assert point.test == point.cascade.evaluate(test, test_targets, COSTS)
        assert point.val.cost <= point.target_cost * (1 + 1e-9)
    accuracies = [point.val.accuracy for point in points]
    assert accuracies == sorted(accuracies)
    fixed = Cascade((C,), ()).evaluate(val, val_targets, COSTS)
    assert accuracies[-1] >= fixed.accuracy
    assert all(p.cascade != q.cascade for p, q in combinations(points, 2))


def test_against_fixed_by_hand():
    val, val_targets = noisy(600, 0)
    test, test_targets = noisy(600, 1)
    rows = against_fixed(val, val_targets, test, test_targets, COSTS, grid=24, **PLAIN)
    assert [row.size for row in rows] == [A, B, C]
    assert rows[0].cascade == Cascade((A,), ()) and rows[0].difference == rows[0].standard_error == 0
    for row in rows:
        assert row.difference == pytest.approx(row.result.accuracy - row.fixed.accuracy)
        assert row.fixed == Cascade((row.size,), ()).evaluate(test, test_targets, COSTS)
    pair = (rows[2].cascade, Cascade((C,), ()))
    better, single = ((cascade.decide(test)[0].argmax(1) == test_targets).double() for cascade in pair)
    won, lost = ((better > single).sum().item(), (better < single).sum().item())
    variance = (won + lost) / 600 - ((won - lost) / 600) ** 2
    assert rows[2].standard_error == pytest.approx(sqrt(variance / 599), rel=1e-9)


def test_mistakes():
    logits, targets = noisy(20, 0)
    with pytest.raises(ValueError, match="one of target_cost and target_accuracy"):
        calibrate_cascade(logits, targets, COSTS)
    with pytest.raises(ValueError, match=r"no cascade costs 2\.5 or less: the cheapest costs 3 per image"):
        calibrate_cascade(logits, targets, COSTS, target_cost=2.5)
    with pytest.raises(ValueError, match=r"no cascade reaches an accuracy of 1\.1000: the best has"):
        calibrate_cascade(logits, targets, COSTS, target_accuracy=1.1)
    with pytest.raises(ValueError, match="no cost for size"):
        calibrate_cascade({(9, 9): logits[A]}, targets, COSTS, target_cost=5)
    with pytest.raises(ValueError, match="differ in their number of images"):
        calibrate_cascade(logits, targets[:-1], COSTS, target_cost=5)
    with pytest.raises(ValueError, match="choose one of probability, margin, entropy"):
        calibrate_cascade(logits, targets, COSTS, target_cost=5, confidence="max")
    with pytest.raises(ValueError, match="n_points=0"):
        cascade_curve(logits, targets, *noisy(20, 1), COSTS, n_points=0)


@pytest.mark.parametrize("function", [cascade_curve, against_fixed])
def test_figures_are_never_of_the_images_that_set_the_thresholds(function):
    logits, targets = noisy(20, 0)
    copies = {size: value.clone() for size, value in logits.items()}
    with pytest.raises(ValueError, match="are the same images: calibrate on one half"):
        function(logits, targets, copies, targets.clone(), COSTS)
    first, rest = slice(0, 10), slice(10, 20)
    halves = [({size: value[part] for size, value in logits.items()}, targets[part]) for part in (first, rest)]
    assert function(*halves[0], *halves[1], COSTS)
