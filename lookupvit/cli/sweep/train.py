"""The trainings of `lookupvit sweep --config`: one model per size, one for all sizes, each seed; resumable."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from lookupvit.cli.launch.options import HERE, Launch
from lookupvit.cli.runs import Planned, Trained
from lookupvit.cli.runs import train as train_all
from lookupvit.grid import Size, size_name

_MULTI_ONLY = ("sandwich", "size_weights", "eval_compressed_sizes")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        size: The compressed size it is trained at; None for the model of all sizes.
        seed: Of initialisation, order and draws.
    """

    size: Size | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder, `single_3x3_seed0` or `multi_seed0`."""
        return f"{'multi' if self.size is None else f'single_{size_name(self.size)}'}_seed{self.seed}"


def described(run: Run, trained: Trained) -> dict[str, Any]:
    """A finished training as plain data."""
    size = None if run.size is None else list(run.size)
    figures = {"epochs": trained.epochs, "steps": trained.steps, "seconds": trained.seconds}
    return {"name": run.name, "trained_at": size, "seed": run.seed, **figures, "checkpoint": str(trained.checkpoint)}


def plan(sizes: list[Size], ways: list[str], seeds: list[int]) -> list[Run]:
    """The trainings, seed by seed.

    Args:
        sizes: Compressed sizes.
        ways: "single" (one model per size), "multi" (one for all sizes), or both.
        seeds: One training of each kind per seed.
    """
    return [Run(size, seed) for seed in seeds for way in ways for size in (sizes if way == "single" else [None])]


def train(
    config: str,
    runs: list[Run],
    sizes: list[Size],
    output: Path,
    options: list[str],
    console: Console,
    launch: Launch = HERE,
) -> list[Trained]:
    """Trains what is not trained yet, see `lookupvit.cli.runs.train`.

    Args:
        config: Base configuration.
        runs: From `plan`.
        sizes: Of the model of all sizes.
        output: Folder of the runs.
        options: Of `fit`, handed to every run.
        console: Where progress is printed.
        launch: Where the trainings run.

    Returns:
        The finished trainings, in the order of `runs`.

    Raises:
        ValueError, FileNotFoundError: One line, if options do not fit, or a run in the folder had other settings.
    """
    planned = [Planned(run.name, ["--config", config, *options, *_own_options(run, sizes)]) for run in runs]
    return train_all(planned, output, console, lambda settings: _try_model(settings, sizes), launch)


def _own_options(run: Run, sizes: list[Size]) -> list[str]:
    """The options that make a run this one; they follow the user's options, so they win."""
    options = ["--seed_everything", str(run.seed)]
    if run.size is None:
        listed = json.dumps([list(size) for size in sizes])
        return [*options, "--model.compressed_sizes", listed, "--model.compressed_size", "null"]
    # Options that train one model at many sizes have no place in a model of one size.
    off = {"sandwich": "false"}
    for name in ("compressed_sizes", *_MULTI_ONLY):
        options += [f"--model.{name}", off.get(name, "null")]
    return [*options, "--model.compressed_size", json.dumps(list(run.size))]


def _try_model(settings: dict[str, Any], sizes: list[Size]) -> None:
    """Builds the model of all sizes once, so that a size that does not fit is found before any training."""
    module, _, name = settings["model.class_path"].rpartition(".")
    given = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    arguments = {key: value for key, value in given.items() if key != "class_path" and not key.startswith("args.")}
    if nested := {key.removeprefix("args."): value for key, value in given.items() if key.startswith("args.")}:
        arguments["args"] = nested
    arguments |= {"compressed_size": None, "compressed_sizes": [list(size) for size in sizes]}
    arguments |= dict.fromkeys(("size_weights", "eval_compressed_sizes"))
    arguments["img_size"] = settings.get("data.img_size")
    getattr(import_module(module), name)(**arguments)
