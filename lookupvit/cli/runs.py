"""Series of trainings, for `lookupvit sweep` and `lookupvit ablate`; an interrupted series is resumable."""

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

import datamodules
from lookupvit import tasks
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.checkpoints.find import find_checkpoint
from lookupvit.cli.common.run_folder import output_folder
from lookupvit.cli.common.stored import plain
from lookupvit.cli.fit import run as run_command
from lookupvit.cli.launch.cluster import run_cluster
from lookupvit.cli.launch.job import Job
from lookupvit.cli.launch.options import HERE, Launch
from lookupvit.cli.launch.processes import run_processes
from lookupvit.tasks.base import Task
from lookupvit.trust import read_json
from lookupvit.writing import write_text

_POLL = 1.0  # seconds between two looks at a training of another process

# Settings that say where things are or how fast they go; they do not change the result.
_NOT_COMPARED = (
    "output_dir",
    "name",
    "include",
    "config",
    "ckpt_path",
    "weights_only",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "data.prefetch_factor",
    "data.persistent_workers",
)


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
        settings[one.name] = _settings(arguments[one.name])
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


def here(output: Path) -> list[str]:
    """Options that send a run to a folder, whatever its configuration says."""
    return ["--output_dir", str(output), "--trainer.default_root_dir", "null"]


def resolve(argv: list[str]) -> dict[str, Any]:
    """The whole configuration that `fit` would run with, as `--print_config` shows it, by dotted names."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        run_command(["fit", *argv, "--print_config"])
    return _flatten(yaml.safe_load(text.getvalue()), "")


def common_output(configs: dict[str, dict[str, Any]]) -> Path:
    """The one folder that configurations, by their files, send their runs to.

    Args:
        configs: From `resolve`.

    Raises:
        ValueError: If they name two.
    """
    folders = {
        file: output_folder(settings["output_dir"], settings.get("trainer.default_root_dir"))
        for file, settings in configs.items()
    }
    (first, folder), *others = folders.items()
    for file, other in others:
        if other != folder:
            raise ValueError(
                f"{first} writes to {folder} and {file} to {other}: give --output_dir, one folder for the runs and "
                "the table"
            )
    return folder


def common_measure(configs: dict[str, dict[str, Any]]) -> str:
    """The accuracy that the tasks of configurations, by their files, are compared by, such as "top1".

    Args:
        configs: From `resolve`.

    Raises:
        ValueError: If there are two, or a task has none.
    """
    found = {}
    for file, settings in configs.items():
        task = str(settings["model.class_path"]).rpartition(".")[2]
        found[file] = getattr(tasks, task, Task).monitor[0].rpartition("/")[2]
        data = getattr(datamodules, str(settings.get("data.class_path")).rpartition(".")[2], None)
        if task == "CaptioningTask" and hasattr(data, "check"):
            found[file] = "true_captions"
        if found[file] not in MEASURES:
            raise ValueError(
                f"{file} is of {task}, which has no accuracy to compare: give classifiers or segmenters, or captioners "
                "of data that tell whether a caption is true (ScenesDataModule)"
            )
    (first, measure), *others = found.items()
    for file, other in others:
        if other != measure:
            raise ValueError(
                f"{first} is scored by {MEASURES[measure]}, {file} by {MEASURES[other]}: compare tasks of one kind"
            )
    return measure


def _settings(argv: list[str]) -> dict[str, Any]:
    """The settings from `resolve` that decide the result."""
    settings = resolve(argv)
    if settings.get("trainer.devices") not in (1, "1", "auto"):
        raise ValueError(
            f"--trainer.devices {settings['trainer.devices']}: these runs train on one device each; train "
            "with fit, and give the checkpoints to sweep"
        )
    return {name: value for name, value in settings.items() if name not in _NOT_COMPARED}


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Nested mappings by dotted names, as they are written on the command line (without `init_args`)."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    return flat


def _is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run is finished.

    Raises:
        ValueError: If it was started with other settings.
    """
    begun, done = folder / "settings.json", folder / "done.json"
    for file in (done, begun):
        if file.is_file():
            saved = _read(file)["settings"]
            saved = {**_options_since(saved, settings), **saved}
            names = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
            if names:
                first = names[0]
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                raise ValueError(
                    f"{folder} was run with --{first} {saved.get(first)}, now it is {settings.get(first)}{more}: "
                    "give the old settings, or another --output_dir"
                )
    return done.is_file()


def _options_since(saved: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the options that were added to the model and the data after a run was saved: it ran with them."""
    found = {}
    for part in ("model", "data"):
        new = [name for name in settings if name.startswith(f"{part}.") and name not in saved]
        if new:
            module, _, name = settings[f"{part}.class_path"].rpartition(".")
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
            defaults = plain(parser.get_defaults())
            found |= {name: defaults[key] for name in new if (key := name.partition(".")[2]) in defaults}
    return found


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
