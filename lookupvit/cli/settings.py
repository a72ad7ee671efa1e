"""The settings that a training would have: read without running it, compared between runs, shared by several."""

import contextlib
import io
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import datamodules
from lookupvit import tasks
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.cli.common.run_folder import output_folder
from lookupvit.cli.common.stored import plain
from lookupvit.cli.fit import run as run_command
from lookupvit.tasks.base import Task

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


def measure_of(file: str, settings: dict[str, Any]) -> str:
    """The accuracy that the task of a configuration is compared by, such as "top1".

    Args:
        file: The configuration.
        settings: From `resolve`.

    Raises:
        ValueError: If the task has none.
    """
    task = str(settings["model.class_path"]).rpartition(".")[2]
    measure = getattr(tasks, task, Task).monitor[0].rpartition("/")[2]
    data = getattr(datamodules, str(settings.get("data.class_path")).rpartition(".")[2], None)
    if task == "CaptioningTask" and hasattr(data, "check"):
        measure = "true_captions"
    if measure not in MEASURES:
        raise ValueError(
            f"{file} is of {task}, which has no accuracy to compare: give classifiers, segmenters, detectors, or "
            "captioners of data that tell whether a caption is true, such as ScenesDataModule"
        )
    return measure


def common_measure(configs: dict[str, dict[str, Any]]) -> str:
    """The accuracy that the tasks of configurations, by their files, are compared by, such as "top1".

    Args:
        configs: From `resolve`.

    Raises:
        ValueError: If there are two, or a task has none.
    """
    found = {file: measure_of(file, settings) for file, settings in configs.items()}
    (first, measure), *others = found.items()
    for file, other in others:
        if other != measure:
            raise ValueError(
                f"{first} is scored by {MEASURES[measure]}, {file} by {MEASURES[other]}: compare tasks of one kind"
            )
    return measure


def deciding_settings(argv: list[str]) -> dict[str, Any]:
    """The settings from `resolve` that decide the result of a training.

    Args:
        argv: Options of `fit`.

    Raises:
        ValueError: If the training would take several devices.
    """
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


def options_since(saved: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
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
