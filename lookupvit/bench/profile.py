"""The most expensive operators of a step, by torch's profiler."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity


def top_operators(step: Callable[[], object], device: str = "cpu", limit: int = 10) -> list[dict]:
    """Operators by the time spent in themselves.

    Args:
        step: What to profile; called twice, the first time to warm up.
        device: "cpu" or "cuda...".
        limit: How many to return.

    Returns:
        Rows with operator, calls, ms (in itself, without the operators that it calls) and percent of the whole step.
    """
    cuda = device.startswith("cuda")
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    spent = {}
    for event in profiler.key_averages():
        # on CUDA the operators on the host only queue kernels: the device's time is the one that counts
        time = event.self_device_time_total if cuda else event.self_cpu_time_total
        if time > 0:
            spent[event.key] = (time, event.count)
    total = sum(time for time, _ in spent.values())
    rows = sorted(spent.items(), key=lambda item: -item[1][0])[:limit]
    return [
        {"operator": name, "calls": calls, "ms": time / 1000, "percent": 100 * time / total}
        for name, (time, calls) in rows
    ]
