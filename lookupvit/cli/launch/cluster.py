"""Trainings as one array job of a cluster, through submitit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from lookupvit.cli.launch.job import BUSY, Job
from lookupvit.cli.launch.options import Launch
from lookupvit.trust import read_json
from lookupvit.writing import write_text

_POLL = 0.5  # seconds
_DEFAULTS = {"name": "lookupvit", "timeout_min": 24 * 60}  # submitit's own is five minutes
_TIMEOUTS = 100  # how often a job that ran out of time is queued again


class Training:
    """What a job calls: it trains in a process below, and is queued again where the cluster takes it off early."""

    process: subprocess.Popen | None = None

    def __call__(self, job: Job) -> None:
        """Trains; while another process trains in the folder, waits for it.

        Raises:
            RuntimeError: If the training failed, with its last line.
        """
        # What the cluster says of the job is for submitit: the training is one process on one device.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
        while True:
            self.process = job.start(kept)
            while (code := self.process.poll()) is None:
                time.sleep(_POLL)
            if code == 0:
                return
            if code != BUSY:
                raise RuntimeError(f"{job.name} failed: {job.last_line()}")
            time.sleep(20 * _POLL)

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit on the cluster's notice: ends the training after a checkpoint, and hands on the rest."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            # Not `wait`: the handler may have come in the middle of `poll`, which holds the same lock.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Training(), job)


def run_cluster(
    jobs: list[Job], launch: Launch, folder: Path, is_done: Callable[[Job], bool], console: Console
) -> dict[str, str]:
    """Submits trainings as one array job and waits for them.

    The numbers of the jobs are kept in `submitted.json`, so that the same command, interrupted and given again, waits
    for those that are still queued or running instead of submitting them twice.

    Args:
        jobs: The trainings.
        launch: The launcher and its parameters.
        folder: Of submitit's files.
        is_done: Whether a training is finished.
        console: Where beginnings and ends are printed.

    Returns:
        The reasons of those that failed, by name.

    Raises:
        ValueError: In one line, if submitit or the cluster's commands are missing, or a parameter is not known.
    """
    submitit = _submitit()
    kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[launch.launcher]
    executor = _executor(submitit, launch, folder)
    with FileLock(folder / ".lock"):  # of two commands the second sees what the first has submitted
        known = read_json(folder / "submitted.json") if (folder / "submitted.json").is_file() else {}
        handles = {job.name: kind(executor.folder, known[job.name]) for job in jobs if job.name in known}
        handles = {name: handle for name, handle in handles.items() if not handle.done()}
        new = [job for job in jobs if job.name not in handles]
        if new:
            submitted = executor.map_array(Training(), new)
            handles |= {job.name: handle for job, handle in zip(new, submitted, strict=True)}
            known |= {name: handle.job_id for name, handle in handles.items()}
            write_text(folder / "submitted.json", json.dumps(known, indent=1) + "\n")
    for job in jobs:
        how = "submitted" if job in new else "was submitted before"
        console.print(f"{job.name} {how}, job {handles[job.name].job_id}, output in {job.log}", soft_wrap=True)
    console.print("Ctrl-C leaves the jobs alone; the same command waits for them again")
    return _wait(jobs, handles, is_done, console)


def _wait(jobs: list[Job], handles: dict[str, Any], is_done: Callable[[Job], bool], console: Console) -> dict[str, str]:
    failed, ended = {}, set()
    waiting = list(jobs)
    while waiting:
        for job in list(waiting):
            if is_done(job):
                console.print(f"{job.name} is finished", highlight=False)
            elif job.name in ended:  # at the second look: files of another machine may come late
                failed[job.name] = (
                    f"{_reason(job, handles[job.name])} (submitit's files: {handles[job.name].paths.folder})"
                )
                console.print(f"{job.name} failed: {failed[job.name]}", soft_wrap=True, highlight=False)
            else:
                ended |= {job.name} if handles[job.name].done() else set()
                continue
            waiting.remove(job)
        time.sleep(_POLL)
    return failed


def _reason(job: Job, handle: Any) -> str:
    return job.last_line() if job.log.is_file() else f"the job ended as {handle.state} before it began to train"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError("--launcher needs the package submitit: pip install 'lookupvit[slurm]'") from None
    return submitit


def _executor(submitit: Any, launch: Launch, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {**_DEFAULTS, **launch.parameters}
    if launch.launcher == "slurm" and launch.jobs is not None:
        parameters["slurm_array_parallelism"] = launch.jobs
    try:
        executor = submitit.AutoExecutor(folder, launch.launcher, **{f"{launch.launcher}_max_num_timeout": _TIMEOUTS})
        executor.update_parameters(**parameters)
    except (NameError, AssertionError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--launcher {launch.launcher}: {first}") from error
    return executor
