"""The largest compressed size within a budget of multiply-adds or of time."""

import statistics
import time
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from lookupvit.analysis.cost import lookup_grid, model_macs
from lookupvit.grid import Size, check_compressed_size, size_name, to_2tuple
from lookupvit.model.lookupvit import LookupViT

ROUNDS = 7  # timed calls of one size; the median counts


class BudgetFit(NamedTuple):
    """The largest size within a budget, and its cost.

    Attributes:
        size: The largest compressed size within it.
        macs: Multiply-adds per image at that size.
        ms: Median milliseconds per call at that size, where the budget was one of time.
        next_size: The next larger candidate; None where all fit.
        next_cost: Its cost, in the budget's unit (GMACs or milliseconds).
    """

    size: Size
    macs: int
    ms: float | None
    next_size: Size | None
    next_cost: float | None


def largest_size(
    model: LookupViT,
    gmacs: float | None = None,
    ms: float | None = None,
    img_size: int | tuple[int, int] | None = None,
    candidates: list[Size] | None = None,
    batch: int = 1,
    head: str | None = None,
) -> Size:
    """The largest compressed size that fits in a budget; see `fit_budget`."""
    return fit_budget(model, gmacs, ms, img_size, candidates, batch, head).size


def fit_budget(
    model: LookupViT,
    gmacs: float | None = None,
    ms: float | None = None,
    img_size: int | tuple[int, int] | None = None,
    candidates: list[Size] | None = None,
    batch: int = 1,
    head: str | None = None,
    kind: str = "compressed size",
) -> BudgetFit:
    """The largest compressed size that fits in a budget, and what it and the next one cost.

    Args:
        model: A model, or a segmenter; for a budget of time it runs where its parameters are, in their type.
        gmacs: Budget in 1e9 multiply-adds per image, counted along the path that the model takes.
        ms: Budget in milliseconds per call, measured here and now; give one of the two.
        img_size: Pixels; the model's own by default.
        candidates: Compressed sizes to choose from; `default_candidates` of the lookup grid by default.
        batch: Images of a call, for a budget of time.
        head: Head that is read; the model's own by default.
        kind: What the candidates are, for the message.

    Returns:
        The candidate of the most tokens within the budget. Times are searched by bisection, taking them to grow with
        the multiply-adds; they vary from run to run.

    Raises:
        ValueError: For a budget below what the smallest candidate costs, which the message states, a candidate that
            does not fit the lookup grid, or a model without compressed tokens.
    """
    if (gmacs is None) == (ms is None):
        raise ValueError("give a budget in GMACs or in milliseconds, one of them")
    if getattr(model, "compressed_size", None) is None:
        raise ValueError(f"a {type(model).__name__} has no compressed size that a budget could choose: use a LookupViT")
    if batch < 1:
        raise ValueError(f"batch {batch} is no number of images: give 1 or more")
    pixels = to_2tuple(model.img_size if img_size is None else img_size)
    grid = lookup_grid(model, pixels)
    sizes = {check_compressed_size(size, grid) for size in candidates or default_candidates(grid)}
    macs = {size: sum(model_macs(model, pixels, size, head=head).values()) for size in sizes}
    order = sorted(sizes, key=lambda size: (macs[size], prod(size)))
    if gmacs is not None:
        spent = {size: count / 1e9 for size, count in macs.items()}
        best = max((size for size in order if spent[size] <= gmacs), key=prod, default=None)
        larger = next((size for size in order if best and spent[size] > gmacs), None)
    else:
        spent, best = _bisect(model, order, ms, pixels, batch, head)
        larger = next((size for size in order if best and macs[size] > macs[best]), None)
    if best is None:
        budget, unit = (gmacs, "GMACs") if ms is None else (ms, f"ms at batch {batch}")
        least = min(spent, key=spent.get)
        raise ValueError(
            f"a budget of {budget:g} {unit} is too small: the smallest {kind}, {size_name(least)}, costs "
            f"{spent[least]:.4g} at {pixels[0]}x{pixels[1]} px; give at least that, or choose a smaller image or model"
        )
    return BudgetFit(best, macs[best], spent[best] if ms is not None else None, larger, spent.get(larger))


def default_candidates(grid: Size) -> list[Size]:
    """Compressed sizes of the lookup grid's aspect, smallest first: 1x1, 2x2, ... up to a square grid itself."""
    longest = max(grid)
    return list(
        dict.fromkeys(tuple(max(1, round(axis * step / longest)) for axis in grid) for step in range(1, longest + 1))
    )


@torch.inference_mode()
def call_ms(
    model: nn.Module,
    size: Size | None,
    img_size: tuple[int, int],
    batch: int = 1,
    head: str | None = None,
    rounds: int = ROUNDS,
) -> float:
    """Median milliseconds of one call in evaluation mode, after a call to warm up.

    Args:
        model: `LookupViT` or, with `size` None, `ViT`; runs where its parameters are, in their type.
        size: Compressed size.
        img_size: Pixels (height, width).
        batch: Images of a call.
        head: Head that is read.
        rounds: Calls that are timed.
    """
    where = next(model.parameters())
    images = torch.randn(batch, 3, *img_size, device=where.device, dtype=where.dtype)
    training = model.training
    model.eval()
    try:
        times = []
        for turn in range(rounds + 1):
            start = time.perf_counter()
            model(images, size, head)
            if where.is_cuda:
                torch.cuda.synchronize(where.device)
            if turn:
                times.append(1000 * (time.perf_counter() - start))
    finally:
        model.train(training)
    return statistics.median(times)


def _bisect(
    model: LookupViT, order: list[Size], ms: float, img_size: tuple[int, int], batch: int, head: str | None
) -> tuple[dict[Size, float], Size | None]:
    """The times that were measured, by size, and the last of `order` within the budget."""
    spent: dict[Size, float] = {}
    low, high = 0, len(order)  # what lies below `low` fits, what lies from `high` on does not
    middle = 0  # the smallest first: whether anything fits at all
    while low < high:
        size = order[middle]
        spent[size] = call_ms(model, size, img_size, batch, head)
        low, high = (middle + 1, high) if spent[size] <= ms else (low, middle)
        middle = (low + high) // 2
    return spent, order[low - 1] if low else None
