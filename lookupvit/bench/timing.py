"""Interleaved timing: A B C A B C ..., so that whatever slows the machine for a while slows all alike.

What is compared are the ratios within a round, not the medians of series that ran at different times.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import torch

MIN_ROUNDS = 7
_MAX_REPEATS = 1000

Timer = Callable[[Callable[[], object], int], float]  # (function, repeats) -> seconds of all repeats


@dataclass(frozen=True)
class Timing:
    """The times of one callable.

    Attributes:
        seconds: Seconds of one call, one entry per round.
        ratios: The baseline's time per item over this one's, for each round: above 1 is faster than the baseline.
        items: Items (images) per call.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    items: int = 1

    @property
    def median(self) -> float:
        """Median seconds of one call."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Least seconds of one call."""
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds of one call."""
        return quartiles(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the pairwise ratios."""
        return statistics.median(self.ratios)

    @property
    def rate(self) -> float:
        """Items per second, at the median."""
        return self.items / self.median


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """First and third quartile, linearly interpolated between the values (as numpy does)."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    return cuts[0], cuts[2]


class CpuTimer:
    """Wall-clock time of work that is done when the call returns.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock

    def __call__(self, function: Callable[[], object], repeats: int) -> float:
        """Seconds of `repeats` calls."""
        start = self.clock()
        for _ in range(repeats):
            function()
        return self.clock() - start


class CudaTimer:
    """Time of work that a GPU does on its own.

    Args:
        latency: Wait for each call and read the wall clock, as one who waits for an answer does; otherwise calls are
            queued one after the other and timed by CUDA events.
    """

    def __init__(self, latency: bool = False):
        self.latency = latency

    def __call__(self, function: Callable[[], object], repeats: int) -> float:
        """Seconds of `repeats` calls."""
        torch.cuda.synchronize()
        if self.latency:
            start = time.perf_counter()
            for _ in range(repeats):
                function()
                torch.cuda.synchronize()
            return time.perf_counter() - start
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(repeats):
            function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000


def timer_for(device: str, latency: bool = False) -> Timer:
    """The timer of a device, "cpu" or "cuda..."."""
    return CudaTimer(latency) if device.startswith("cuda") else CpuTimer()


def interleave(
    cases: Mapping[str, Callable[[], object]],
    baseline: str,
    rounds: int = MIN_ROUNDS,
    warmup: int = 2,
    timer: Timer | None = None,
    min_seconds: float = 0.0,
    items: Mapping[str, int] | None = None,
    label: str = "timing",
) -> dict[str, Timing]:
    """Times callables in turn.

    Args:
        cases: Callables without arguments, by name, in the order in which they take turns.
        baseline: The name to which the ratios refer.
        rounds: Turns of each.
        warmup: Calls of each before the first round; at least one.
        timer: Measures some calls of one callable; the CPU's by default.
        min_seconds: A sample repeats a fast callable until it takes about so long (seen in the warm-up).
        items: Items (images) of one call, 1 where a name is missing; ratios are taken per item.
        label: Label of the progress bar.

    Returns:
        The timings, by name.

    Raises:
        ValueError: For an unknown baseline, or less than one round or warm-up call.
    """
    if baseline not in cases:
        raise ValueError(f"the baseline {baseline!r} is not among the cases: {', '.join(cases)}")
    if min(rounds, warmup) < 1:
        raise ValueError(f"timing needs at least one round and one warm-up call, got {rounds} and {warmup}")
    timer = timer or CpuTimer()
    count = {name: (items or {}).get(name, 1) for name in cases}
    repeats = {}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    with progress_bar(label, len(cases) * (rounds + 1)) as advance:
        for name, function in cases.items():
            last = [timer(function, 1) for _ in range(warmup)][-1]
            repeats[name] = min(_MAX_REPEATS, max(1, ceil(min_seconds / last))) if last > 0 else 1
            advance()
        for _ in range(rounds):
            for name, function in cases.items():
                taken[name].append(timer(function, repeats[name]) / repeats[name])
                advance()
    reference = [seconds / count[baseline] for seconds in taken[baseline]]
    return {
        name: Timing(
            tuple(seconds),
            tuple(base * count[name] / own for base, own in zip(reference, seconds, strict=True)),
            count[name],
        )
        for name, seconds in taken.items()
    }


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A rich progress bar on stderr, if rich is installed and somebody watches; yields the function to advance it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
