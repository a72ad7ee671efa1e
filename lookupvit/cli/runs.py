"""Series of trainings, for `lookupvit sweep` and `lookupvit ablate`; an interrupted series is resumable."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from rich.console import Console

from lookupvit.checkpoints.find import find_checkpoint
from lookupvit.cli.fit import run as run_command
from lookupvit.cli.launch.cluster import run_cluster
from lookupvit.cli.launch.job import Job
from lookupvit.cli.launch.options import HERE, Launch
from lookupvit.cli.launch.processes import run_processes
from lookupvit.cli.settings import deciding_settings, here, options_since
from lookupvit.trust import read_json
from lookupvit.writing import write_text

_POLL = 1.0  # seconds between two looks at a training of another process


@dataclass(frozen=True)
class Planned:
    """A training to run.

    Attributes:
        name: Name of its folder.
        argv: Options of `fit`.
    """

    name: str
    argv: list[str]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        name: Name of its folder.
        checkpoint: Its last checkpoint.
        epochs: Number of epochs.
        steps: Number of optimiser steps.
        seconds: Duration, of the last part if it was resumed; None for runs of versions that did not keep it.
    """

    name: str
    checkpoint: Path
    epochs: int
    steps: int
    seconds: float | None


def train(
    planned: list[Planned],
    output: Path,
    console: Console,
    check: Callable[[dict[str, Any]], None] | None = None,
    launch: Launch = HERE,
) -> list[Trained]:
    """Trains what is not trained yet.

    A run that is finished has a `done.json` in its folder, with its settings, and is skipped; one that was interrupted
    goes on from its last checkpoint; one that another process trains is waited for.

    Args:
        planned: The trainings.
        output: Folder of the runs.
        console: Where progress is printed.
        check: Gets the settings of the first training before anything runs, and raises if something does not fit.
        launch: Where the trainings run.

    Returns:
        The trainings.

    Raises:
        ValueError, FileNotFoundError: One line, if options do not fit, or a run in the folder had other settings.
    """
    arguments, settings = {}, {}
    for one in planned:
        arguments[one.name] = [*one.argv, *here(output), "--name", one.name]
        settings[one.name] = deciding_settings(arguments[one.name])
        if settings[one.name]["trainer.devices"] == "auto":  # of several GPUs one
            arguments[one.name] += ["--trainer.devices", "1"]
    if check is not None:
        check(settings[planned[0].name])
    jobs = {
        name: Job(str((output / name).absolute()), arguments[name], settings[name], str(Path.cwd()))
        for name in settings
    }
    waiting = [jobs[one.name] for one in planned if not _is_done(output / one.name, settings[one.name])]
    if len(waiting) < len(planned):
        console.print(f"{len(planned) - len(waiting)} of {len(planned)} runs are finished: {len(waiting)} to go")
    if failed := _run_all(waiting, output, console, launch):
        (name, reason), *others = failed.items()
        more = f" (and {len(others)} more: {', '.join(name for name, _ in others)})" if others else ""
        raise ValueError(f"{name} failed: {reason}{more}; the same command goes on with what is not finished")
    return [_trained(one.name, output / one.name) for one in planned]


def _run_all(waiting: list[Job], output: Path, console: Console, launch: Launch) -> dict[str, str]:
    """Runs trainings as `launch` says; the reasons of those that failed in other processes, by name."""
    if waiting and launch.launcher is not None:
        return run_cluster(waiting, launch, output / "submitted", job_is_done, console)
    if waiting and launch.jobs > 1:
        return run_processes(waiting, min(launch.jobs, len(waiting)), job_is_done, console)
    todo, told = list(waiting), False
    while todo:
        for job in list(todo):
            console.rule(f"[bold]{job.name} ({waiting.index(job) + 1} of {len(waiting)})")
            if attempt(job, console):
                todo.remove(job)
        if todo and not told:
            console.print(f"waiting for another process, which trains {', '.join(job.name for job in todo)}")
            told = True
        while todo and not any(job_is_done(job) or job.is_free() for job in todo):
            time.sleep(_POLL)
    return {}


def attempt(job: Job, console: Console) -> bool:
    """Trains, unless it is done; False if another process is at it."""
    with job.held() as free:
        if free and not job_is_done(job):  # a process that held it before may have finished it
            _train(Path(job.folder), job.argv, job.settings, console)
        return free


def job_is_done(job: Job) -> bool:
    """Whether a training is finished.

    Raises:
        ValueError: If it was started with other settings.
    """
    return _is_done(Path(job.folder), job.settings)


def _is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run is finished.

    Raises:
        ValueError: If it was started with other settings.
    """
    begun, done = folder / "settings.json", folder / "done.json"
    for file in (done, begun):
        if file.is_file():
            saved = _read(file)["settings"]
            saved = {**options_since(saved, settings), **saved}
            names = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
            if names:
                first = names[0]
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                raise ValueError(
                    f"{folder} was run with --{first} {saved.get(first)}, now it is {settings.get(first)}{more}: "
                    "give the old settings, or another --output_dir"
                )
    return done.is_file()


def _train(folder: Path, argv: list[str], settings: dict[str, Any], console: Console) -> None:
    write_text(folder / "settings.json", json.dumps({"settings": settings}, indent=1) + "\n")
    try:
        last = find_checkpoint("last", folder)
    except FileNotFoundError:  # nothing was begun, or it did not get through its first epoch
        resume = []
    else:
        console.print(f"going on from {last}", soft_wrap=True)
        resume = ["--ckpt_path", str(last)]
    start = time.perf_counter()
    trainer = run_command(["fit", *argv, *resume]).trainer
    last = find_checkpoint("last", folder)
    done = {
        "checkpoint": str(last.relative_to(folder)),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": settings,
    }
    write_text(folder / "done.json", json.dumps(done, indent=1) + "\n")


def _trained(name: str, folder: Path) -> Trained:
    done = _read(folder / "done.json")
    path = folder / str(done.get("checkpoint"))
    if folder.resolve() not in path.resolve().parents:
        raise ValueError(f"{folder / 'done.json'} names the checkpoint {path}, outside its folder: train it again")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is marked as done but {path} is gone: remove {folder} to train it again")
    seconds = done.get("seconds")
    if any(type(done.get(key)) is not int for key in ("epochs", "steps")) or not isinstance(
        seconds, (int, float, NoneType)
    ):
        raise ValueError(f"{folder / 'done.json'} says no epochs and steps: remove {folder} to train it again")
    return Trained(name, path, done["epochs"], done["steps"], seconds)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): remove its folder to train it again") from error
    return content
