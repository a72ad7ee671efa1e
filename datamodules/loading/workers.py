"""Loader processes: how many, what they do with signals, and the errors that come out of them."""

import atexit
import multiprocessing
import os
import signal
from typing import Any

import torch
from torch.utils.data import get_worker_info

_MAX_DEFAULT_WORKERS = 16
_MAX_WATCHED = 256  # loader processes of one rank


class OneLineError(ValueError):
    """An error of one line, which keeps its line when it leaves a loader process.

    A DataLoader raises a worker's error again with the worker's whole traceback as its text, of which the last line is
    the message.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().rsplit("\n", 1)[-1]
        super().__init__(last_line.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))


class WorkerDiedError(ValueError):
    """A loader process was killed (out of memory, a crash in a decoder); the text names the file that it read."""


class Watched:
    """A data set that remembers which sample each loader process reads, in case the process dies there."""

    def __init__(self) -> None:
        # In shared memory, one row per worker: its process id and its sample.
        self._reading = torch.full((_MAX_WATCHED, 2), -1, dtype=torch.int64).share_memory_()

    def now_reading(self, index: int) -> None:
        """Notes the sample, if this is a loader process."""
        if (worker := get_worker_info()) is not None and worker.id < len(self._reading):
            self._reading[worker.id, 0], self._reading[worker.id, 1] = os.getpid(), index

    def last_read_by(self, process: int) -> int | None:
        """Index of the sample that a loader process was reading; None for any other process."""
        rows = (self._reading[:, 0] == process).nonzero().flatten().tolist()
        return int(self._reading[rows[0], 1]) if rows else None


def worker_options(
    num_workers: int | None, trainer: Any = None, persistent_workers: bool = False, prefetch_factor: int | None = None
) -> dict[str, Any]:
    """The arguments of a DataLoader that concern its processes.

    Args:
        num_workers: Loader processes; None = this machine's cores divided by its devices, at most 16.
        trainer: Lightning's Trainer, which knows the devices; None = one.
        persistent_workers: Keep the processes between epochs.
        prefetch_factor: Batches that each process prepares ahead; None = torch's default.
    """
    workers = default_workers(trainer) if num_workers is None else num_workers
    return {
        "num_workers": workers,
        "persistent_workers": persistent_workers and workers > 0,  # torch refuses both without workers
        "prefetch_factor": prefetch_factor if workers > 0 else None,
        "worker_init_fn": leave_signals,
        "pin_memory": torch.cuda.is_available(),
    }


def leave_signals(worker: int) -> None:
    """For `worker_init_fn`: lets a loader process outlive the signals that a scheduler sends to every process.

    The training process decides what they mean; a worker that dies of one would end the run with an error before that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_loader_processes() -> None:
    """Kills loader processes that torch could not end: one that hangs ignores its signal, and Python would wait."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def default_workers(trainer: Any = None) -> int:
    """Loader processes for each device: this machine's cores divided by the Trainer's devices, at most 16."""
    local_devices = 1 if trainer is None else max(1, trainer.num_devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_DEFAULT_WORKERS, max(1, cores // local_devices))
