"""Loader processes: how many, what they do with signals, and the error of one that died."""

import os
import signal
from typing import Any

_MAX_DEFAULT_WORKERS = 16


class WorkerDiedError(ValueError):
    """A loader process that was killed (out of memory, a crash in a decoder); names the file that it read."""


def leave_signals(worker: int) -> None:
    """For ``worker_init_fn``: lets a loader process outlive the signals that a scheduler sends to every process.

    The training process decides what they mean; a worker that dies of one would end the run with an error before that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def default_workers(trainer: Any = None) -> int:
    """Loader processes for each device: this machine's cores divided by the Trainer's devices, at most 16."""
    local_devices = 1 if trainer is None else max(1, trainer.num_devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_DEFAULT_WORKERS, max(1, cores // local_devices))
