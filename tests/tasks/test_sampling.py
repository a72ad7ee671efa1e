"""The size of a step: what it depends on, how often each comes, and the sandwich rule."""

from itertools import pairwise

import numpy as np
import pytest

from lookupvit.tasks.sampling import check_sizes, draw_size, sandwich_sizes

SIZES = [(3, 3), (5, 5), (7, 7), (10, 10)]


def draws(steps: range, seed: int = 0, weights: list[float] | None = None) -> list[tuple[int, ...]]:
    return [draw_size(SIZES, weights, seed, step) for step in steps]


def test_the_size_depends_on_seed_and_step_alone() -> None:
    whole = draws(range(500))
    assert draws(range(250, 500)) == whole[250:]  # a run resumed at step 250
    assert [draw_size(SIZES, None, 0, step) for step in reversed(range(500))] == whole[::-1]  # no hidden state
    assert draws(range(500), seed=1) != whole
    # Known values: SeedSequence and PCG64 are stable across machines and releases of numpy.
    expected = [SIZES[int(4 * np.random.Generator(np.random.PCG64([0, s])).random())] for s in range(20)]
    assert whole[:20] == expected


def test_sizes_come_as_often_as_their_weights_say() -> None:
    n = 8000
    for weights in (None, [1.0, 0.0, 2.0, 5.0]):
        shares = np.array(weights or [1.0] * 4) / sum(weights or [1.0] * 4)
        counts = np.array([draws(range(n), 3, weights).count(size) for size in SIZES])
        deviation = np.sqrt(n * shares * (1 - shares))
        assert np.all(np.abs(counts - n * shares) <= 4 * deviation), counts
    steps = draws(range(n))
    pairs = sum(a == b for a, b in pairwise(steps)) / n  # neighbouring steps are independent
    assert abs(pairs - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)


def test_the_sandwich_is_the_largest_the_smallest_and_one_between() -> None:
    shuffled = [(5, 5), (10, 10), (3, 3), (7, 7)]
    seen = [sandwich_sizes(shuffled, None, 0, step) for step in range(50)]
    assert {tuple(s[:2]) for s in seen} == {((10, 10), (3, 3))}
    assert {s[2] for s in seen} == {(5, 5), (7, 7)}
    assert {sandwich_sizes(shuffled, [0, 1, 1, 1], 0, step)[2] for step in range(20)} == {(7, 7)}
    assert sandwich_sizes([(2, 3), (3, 3)], None, 0, 0) == [(3, 3), (2, 3)]
    assert sandwich_sizes([(2, 2)], None, 0, 0) == [(2, 2)]
    assert sandwich_sizes([(1, 3, 3), (4, 3, 3), (2, 3, 3)], None, 0, 7) == [(4, 3, 3), (1, 3, 3), (2, 3, 3)]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], None, "compressed_sizes is empty"),
        ([[3, 3], [5, 5], [3, 3]], None, r"lists \[3, 3\] twice"),
        ([[3, 3], [5, 5]], [1.0], "1 entries for 2 sizes"),
        ([[3, 3], [5, 5]], [1.0, -1.0], "at least 0"),
        ([[3, 3], [5, 5]], [0.0, 0.0], "above 0"),
    ],
)
def test_sizes_and_weights_that_do_not_fit(sizes: list, weights: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_sizes(sizes, weights)
    assert "\n" not in str(error.value)
