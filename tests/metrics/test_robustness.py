"""Robustness scores against numbers worked out by hand."""

import pytest
import torch

from datamodules.robustness.corruptions import CORRUPTIONS
from datamodules.robustness.sets import TestSet
from lookupvit.metrics.multiview import MultiViewAccuracy
from lookupvit.metrics.robustness import ALEXNET_ERRORS, RobustnessScores, corruption_errors


def one_hot_logits(classes: list[int], count: int = 4) -> torch.Tensor:
    return 5 * torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_mce_worked_out_by_hand() -> None:
    sets = [TestSet("imagenet-c", part, severity) for part in ALEXNET_ERRORS for severity in range(1, 6)]
    scores = RobustnessScores(sets)
    for place, one in enumerate(sets):
        # of 10 images one is wrong at severity 1, ..., five at severity 5; snow is all wrong
        wrong = 10 if one.part == "snow" else one.severity
        scores.update(
            one_hot_logits([0] * 10), torch.tensor([1] * wrong + [0] * (10 - wrong)), torch.full((10,), place)
        )
    found = scores.compute()
    errors = {part: 1.0 if part == "snow" else 0.3 for part in ALEXNET_ERRORS}  # 0.3: the mean of 0.1, ..., 0.5
    assert corruption_errors(found["rows"]) == pytest.approx(errors)
    assert found["summary"]["imagenet-c/mean_error"] == pytest.approx((14 * 0.3 + 1) / 15)
    # in per cent, as the papers have it: AlexNet itself is 100
    expected = 100 * (0.3 * sum(1 / e for part, e in ALEXNET_ERRORS.items() if part != "snow") + 1 / 0.866816) / 15
    assert found["summary"]["imagenet-c/mce"] == pytest.approx(expected)
    assert [row["top1"] for row in found["rows"][:2]] == pytest.approx([0.9, 0.8])


def test_a_part_of_imagenet_c_has_no_mce() -> None:
    scores = RobustnessScores([TestSet("imagenet-c", "fog", 1)])
    scores.update(one_hot_logits([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert scores.compute()["summary"] == {"imagenet-c/mean_error": 0.5}


def test_the_relative_drop_is_a_share_of_the_clean_accuracy() -> None:
    scores = RobustnessScores([TestSet("clean"), TestSet("corrupted", "fog", 1), TestSet("corrupted", "snow", 1)])
    for place, right in enumerate((8, 6, 4)):  # of 10
        classes = [0] * right + [1] * (10 - right)
        scores.update(one_hot_logits(classes), torch.zeros(10, dtype=torch.long), torch.full((10,), place))
    expected = {"clean/top1": 0.8, "corrupted/mean_error": 0.5, "corrupted/relative_drop": 1 - 0.5 / 0.8}
    assert scores.compute()["summary"] == pytest.approx(expected)


def test_the_benchmark_s_corruptions() -> None:
    assert set(ALEXNET_ERRORS) == set(CORRUPTIONS) and len(CORRUPTIONS) == 15


def test_logits_are_restricted_before_the_argmax() -> None:
    sets = [TestSet("imagenet-r", classes=(1, 3)), TestSet("imagenet")]
    scores = RobustnessScores(sets)
    logits = torch.tensor([[9.0, 1.0, 8.0, 2.0], [9.0, 2.0, 0.0, 1.0], [9.0, 2.0, 0.0, 1.0]])
    # restricted: 3, 1; at large: 0
    scores.update(logits, torch.tensor([3, 3, 0]), torch.tensor([0, 0, 1]))
    assert scores.compute()["summary"] == {"imagenet-r/top1": 0.5, "imagenet/top1": 1.0}


def test_aupr_worked_out_by_hand() -> None:
    sets = [TestSet("imagenet-o", classes=(0, 1), role="in"), TestSet("imagenet-o", classes=(0, 1), role="out")]
    scores = RobustnessScores(sets)
    # confidence over the two classes is sigmoid of the difference of their logits; the third class counts for nothing
    differences = {0: [4.0, 1.0, 3.0], 1: [2.0, 0.5]}
    for place, values in differences.items():
        logits = torch.tensor([[value, 0.0, 50.0] for value in values])
        scores.update(logits, torch.zeros(len(values), dtype=torch.long), torch.full((len(values),), place))
    # least confident first: out (0.5), in (1), out (2), in (3), in (4): precision 1/1 and 2/3 where recall rises by 1/2
    assert scores.compute()["summary"]["imagenet-o/aupr"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_batches_may_mix_sets() -> None:
    sets = [TestSet("a"), TestSet("b")]
    together, apart = RobustnessScores(sets), RobustnessScores(sets)
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 4, generator=generator), torch.randint(0, 4, (40,), generator=generator)
    places = torch.arange(40) % 2
    together.update(logits, targets, places)
    for place in (1, 0):
        apart.update(logits[places == place], targets[places == place], places[places == place])
    assert together.compute() == apart.compute()


def test_more_is_better_for_accuracy_over_views() -> None:
    assert MultiViewAccuracy(3).higher_is_better is True
    scores = MultiViewAccuracy(3)
    with pytest.raises(ValueError, match="do not fit"):
        scores.update(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long))
