"""Which compressed sizes a training step uses: a function of (seed, step) alone.

There is no generator with a state. Every rank, every micro-batch of an accumulated step and every resumed run draws the
same size, although nothing is sent or saved.
"""

from collections.abc import Sequence
from math import isfinite, prod

import numpy as np

from lookupvit.grid import Size


def check_sizes(sizes: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> list[Size]:
    """The sizes as tuples, in the order given.

    Args:
        sizes: Compressed grids such as `[[3, 3], [5, 5]]`, or `[[2, 3, 3], ...]` for clips.
        weights: How often each is drawn, relative to the others; None: equally often.

    Raises:
        ValueError: If there is no size, two sizes are equal, or the weights do not fit.
    """
    checked = [tuple(int(side) for side in size) for size in sizes]
    if not checked:
        raise ValueError("compressed_sizes is empty: give sizes such as [[3, 3], [5, 5]], or null for a single size")
    twice = [size for i, size in enumerate(checked) if size in checked[:i]]
    if twice:
        raise ValueError(f"compressed_sizes lists {list(twice[0])} twice: use size_weights to draw a size more often")
    if weights is not None:
        if len(weights) != len(checked):
            raise ValueError(
                f"size_weights has {len(weights)} entries for {len(checked)} sizes: give one for each size"
            )
        if not all(isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
            raise ValueError(f"size_weights {list(weights)}: give numbers of at least 0, one of them above 0")
    return checked


def draw_size(sizes: Sequence[Size], weights: Sequence[float] | None, seed: int, step: int) -> Size:
    """The compressed size of a step.

    Args:
        sizes: From `check_sizes`.
        weights: Relative frequencies; None: equal.
        seed: Seed of the run.
        step: Optimiser step, from 0.
    """
    # Each step has a generator of its own: NumPy hashes (seed, step), so that neighbouring steps are independent.
    uniform = np.random.default_rng([seed, step]).random()
    shares = np.ones(len(sizes)) if weights is None else np.asarray(weights, dtype=float)
    edges = np.cumsum(shares) / shares.sum()
    return sizes[min(int(np.searchsorted(edges, uniform, side="right")), len(sizes) - 1)]


def sandwich_sizes(sizes: Sequence[Size], weights: Sequence[float] | None, seed: int, step: int) -> list[Size]:
    """The sandwich rule: the largest size, the smallest, and one drawn from the sizes between (if there are any).

    The largest comes first, because it teaches the others. Sizes with equal numbers of tokens keep their order.
    """
    order = sorted(range(len(sizes)), key=lambda i: -prod(sizes[i]))
    first, middle, last = order[0], order[1:-1], order[-1]
    chosen = [sizes[first], sizes[last]] if len(sizes) > 1 else [sizes[first]]
    inner = None if weights is None else [weights[i] for i in middle]
    if middle and (inner is None or sum(inner) > 0):
        chosen.append(draw_size([sizes[i] for i in middle], inner, seed, step))
    return chosen


def sizes_of_step(
    sizes: Sequence[Size | None], weights: Sequence[float] | None, seed: int, step: int, sandwich: bool = False
) -> list[Size | None]:
    """The compressed sizes of a training step: the only one, one drawn at random, or those of the sandwich rule."""
    if len(sizes) == 1:
        return [sizes[0]]
    return sandwich_sizes(sizes, weights, seed, step) if sandwich else [draw_size(sizes, weights, seed, step)]
