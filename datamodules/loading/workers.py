"""Loader processes: how many, what they do with signals, and the error of one that died."""

import os
import signal
from typing import Any

import torch
from torch.utils.data import get_worker_info

_MAX_DEFAULT_WORKERS = 16
_MAX_WATCHED = 256  # loader processes of one rank


class WorkerDiedError(ValueError):
    """A loader process that was killed (out of memory, a crash in a decoder); names the file that it read."""


class Watched:
    """A data set that remembers which sample each loader process is at, should it die there."""

    def __init__(self) -> None:
        # Shared memory: the process of each worker, and its sample.
        self._reading = torch.full((_MAX_WATCHED, 2), -1, dtype=torch.int64).share_memory_()

    def now_reading(self, index: int) -> None:
        """Notes the sample, if this is a loader process."""
        if (worker := get_worker_info()) is not None and worker.id < len(self._reading):
            self._reading[worker.id, 0], self._reading[worker.id, 1] = os.getpid(), index

    def last_read_by(self, process: int) -> int | None:
        """Index of the sample that a loader process was at; None of another process."""
        rows = (self._reading[:, 0] == process).nonzero().flatten().tolist()
        return int(self._reading[rows[0], 1]) if rows else None


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
