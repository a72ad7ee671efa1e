"""Which points of a cost-accuracy plane are worth taking."""

from collections.abc import Sequence
from math import isfinite


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The points that no other point beats: none costs as little or less and is worth as much or more.

    Of points that agree in both, all stay or none.

    Args:
        costs: Less is better (multiply-adds, milliseconds).
        values: More is better (accuracy).

    Returns:
        Their places in `costs`, by rising cost.

    Raises:
        ValueError: If the lengths differ, or a number is not finite.

    Example:
        >>> pareto_front([1, 2, 3, 4], [50, 70, 60, 80])
        [0, 1, 3]
    """
    if len(costs) != len(values):
        raise ValueError(f"{len(costs)} costs do not go with {len(values)} values: give one of each per point")
    if not all(isfinite(number) for number in (*costs, *values)):
        raise ValueError("a Pareto front needs finite costs and values: leave out the points that were not measured")
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        last = front[-1] if front else None
        if last is None or values[i] > values[last] or (values[i], costs[i]) == (values[last], costs[last]):
            front.append(i)
    return front
