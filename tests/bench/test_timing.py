"""Timing on a clock that only the timed callables move."""

import numpy as np
import pytest

from lookupvit.bench.timing import CpuTimer, interleave, quartiles


class Clock:
    """Seconds that pass when a callable says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self) -> float:
        return self.now

    def callable(self, name: str, *durations: float):
        """Takes the durations in turn; the last one for ever."""
        left = list(durations)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_rounds_interleave_and_ratios_are_pairwise():
    clock = Clock()
    # one warm-up each, then three rounds; the machine is three times slower in the second round
    cases = {"base": clock.callable("base", 9, 4, 12, 4), "half": clock.callable("half", 9, 2, 6, 1)}
    timings = interleave(cases, "base", rounds=3, warmup=1, timer=CpuTimer(clock))
    assert clock.calls == ["base", "half"] * 4
    assert timings["base"].seconds == (4, 12, 4) and timings["half"].seconds == (2, 6, 1)
    assert timings["half"].ratios == (2, 2, 4) and timings["half"].ratio == 2
    assert timings["base"].ratio == 1
    assert (timings["half"].median, timings["half"].fastest) == (2, 1)
    assert timings["base"].quartiles == (4, 8)


def test_warm_up_comes_case_by_case():
    clock = Clock()
    cases = {name: clock.callable(name, 1) for name in "abc"}
    interleave(cases, "a", rounds=2, warmup=3, timer=CpuTimer(clock))
    assert "".join(clock.calls) == "aaabbbccc" + "abcabc"


def test_items_of_different_batches():
    clock = Clock()
    cases = {"one": clock.callable("one", 1.0), "eight": clock.callable("eight", 2.0)}
    timings = interleave(cases, "one", 2, 1, CpuTimer(clock), items={"eight": 8})
    assert timings["eight"].ratio == 4  # 1 s an image against 2 / 8 s
    assert timings["eight"].rate == 4 and timings["one"].rate == 1


def test_fast_callables_repeat():
    clock = Clock()
    cases = {"slow": clock.callable("slow", 2.0), "fast": clock.callable("fast", 0.25)}
    timings = interleave(cases, "slow", 2, 1, CpuTimer(clock), min_seconds=1.0)
    assert clock.calls.count("fast") == 1 + 2 * 4 and clock.calls.count("slow") == 1 + 2
    assert timings["fast"].median == 0.25 and timings["fast"].ratio == 8


def test_quartiles_are_numpys():
    values = (3.0, 1.0, 7.0, 4.0, 10.0, 2.0, 2.5)
    assert quartiles(values) == pytest.approx(tuple(np.percentile(values, (25, 75))))
    assert quartiles((5.0,)) == (5.0, 5.0)


def test_mistakes():
    with pytest.raises(ValueError, match=r"baseline 'b' is not among the cases: a"):
        interleave({"a": int}, "b")
    with pytest.raises(ValueError, match="at least one round"):
        interleave({"a": int}, "a", rounds=0)
