"""Several trainings at once on this machine, each in a process of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from lookupvit.callbacks.last import EXIT_REQUEUE, Preempted
from lookupvit.cli.launch.job import BUSY, Job, threads_for

_POLL = 0.2  # seconds
_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def run_processes(jobs: list[Job], count: int, is_done: Callable[[Job], bool], console: Console) -> dict[str, str]:
    """Runs trainings, `count` at once, until each is done, by this command or by another one.

    A training that fails does not stop the others.

    Args:
        jobs: The trainings.
        count: How many run at once.
        is_done: Whether a training is finished.
        console: Where beginnings and ends are printed.

    Returns:
        The reasons of those that failed, by name.

    Raises:
        Preempted: After a signal or Ctrl-C, once every training has written its checkpoint.
    """
    failed: dict[str, str] = {}
    waiting, running, places, told = list(jobs), {}, list(range(count)), False
    with _signals():
        try:
            while waiting or running:
                for job in [one for one in waiting if is_done(one)]:
                    console.print(f"{job.name} was finished by another process", highlight=False)
                    waiting.remove(job)
                while places and (job := next((one for one in waiting if one.is_free()), None)) is not None:
                    waiting.remove(job)
                    console.print(f"{job.name} begins, output in {job.log}", soft_wrap=True, highlight=False)
                    place = places.pop(0)
                    running[job.start(_environment(place, count))] = (job, place, time.perf_counter())
                if waiting and not running and not told:  # every one of them is held
                    names = ", ".join(job.name for job in waiting)
                    console.print(f"waiting for another process, which trains {names}", highlight=False)
                    told = True
                for process in [one for one in running if one.poll() is not None]:
                    job, place, start = running.pop(process)
                    places.append(place)
                    if process.returncode == BUSY:
                        waiting.append(job)
                    elif process.returncode in (EXIT_REQUEUE, -signal.SIGTERM):
                        raise Preempted(f"{job.name} was stopped by a signal")
                    elif process.returncode:
                        failed[job.name] = f"{job.last_line()} (whole output in {job.log})"
                        console.print(f"{job.name} failed: {failed[job.name]}", soft_wrap=True, highlight=False)
                    else:
                        seconds = time.perf_counter() - start
                        console.print(f"{job.name} is finished, {seconds:.0f} s", highlight=False)
                time.sleep(_POLL)
        except BaseException:
            _stop(list(running))
            raise
    return failed


def _environment(place: int, count: int) -> dict[str, str]:
    """The environment of the process in a place: its share of the cores, and of several GPUs one."""
    environment = threads_for(count)
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % gpus]
    return environment


@contextmanager
def _signals() -> Iterator[None]:
    """A scheduler's signals become `Preempted`, as in a training of one process."""

    def stop(number: int, frame: Any) -> None:
        raise Preempted(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(processes: list[subprocess.Popen]) -> None:
    """Lets every training write its checkpoint; a second signal or Ctrl-C meanwhile ends them at once."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except BaseException:
        for process in processes:
            process.kill()
        raise
