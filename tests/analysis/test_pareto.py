"""The Pareto front against its definition."""

import random

import pytest

from lookupvit.analysis.pareto import pareto_front


def by_definition(costs: list[float], values: list[float]) -> set[int]:
    """Places that no other point beats, by comparing all pairs."""
    points = list(zip(costs, values, strict=True))
    return {
        i for i, (c, v) in enumerate(points) if not any(oc <= c and ov >= v and (oc, ov) != (c, v) for oc, ov in points)
    }


@pytest.mark.parametrize("seed", range(30))
def test_front_is_what_its_definition_says(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 25)
    costs = [rng.randint(1, 8) for _ in range(count)]  # few values, so that ties of every kind come up
    values = [rng.randint(1, 8) for _ in range(count)]
    front = pareto_front(costs, values)
    assert set(front) == by_definition(costs, values) and len(set(front)) == len(front)
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_front_by_hand() -> None:
    assert pareto_front([], []) == []
    assert pareto_front([3, 1, 2, 2], [50, 40, 60, 55]) == [1, 2]  # 3 costs more than 2 and is worth less
    assert pareto_front([1, 1, 2], [5, 5, 5]) == [0, 1]  # equal points stay together


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="2 costs do not go with 1 values"):
        pareto_front([1, 2], [1])
    with pytest.raises(ValueError, match="finite"):
        pareto_front([1, float("nan")], [1, 2])
