"""The trainings of `lookupvit sweep --config`: one model a size, one for all sizes, each seed; resumable."""

import contextlib
import io
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from lookupvit.cli_checkpoint import find_checkpoint, plain
from lookupvit.cli_lightning import run as run_command
from lookupvit.model.grid import size_name

Size = tuple[int, ...]
_MULTI_ONLY = ("sandwich", "size_weights", "eval_compressed_sizes")
# Settings that say where things are or how fast they go, not what comes out.
_FREE = (
    "output_dir",
    "name",
    "include",
    "config",
    "ckpt_path",
    "weights_only",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "data.prefetch_factor",
    "data.persistent_workers",
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        size: the compressed size it is trained at; None for the model of all sizes.
        seed: of initialisation, order and draws.
    """

    size: Size | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder, `single_3x3_seed0` or `multi_seed0`."""
        return f"{'multi' if self.size is None else f'single_{size_name(self.size)}'}_seed{self.seed}"


@dataclass(frozen=True)
class Trained:
    """A training that is finished.

    Attributes:
        run: which one.
        checkpoint: its last one.
        epochs: how long it was.
        steps: likewise, optimiser steps.
    """

    run: Run
    checkpoint: Path
    epochs: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        size = None if self.run.size is None else list(self.run.size)
        figures = {"epochs": self.epochs, "steps": self.steps, "checkpoint": str(self.checkpoint)}
        return {"name": self.run.name, "trained_at": size, "seed": self.run.seed, **figures}


def plan(sizes: list[Size], ways: list[str], seeds: list[int]) -> list[Run]:
    """The trainings, seed by seed.

    Args:
        sizes: compressed sizes.
        ways: "single" (one model a size), "multi" (one for all sizes), or both.
        seeds: each is one training of every kind.
    """
    return [Run(size, seed) for seed in seeds for way in ways for size in (sizes if way == "single" else [None])]


def train(
    config: str, runs: list[Run], sizes: list[Size], output: Path, options: list[str], console: Console
) -> list[Trained]:
    """Trains what is not trained yet.

    A run that is finished has a `done.json` in its folder, with its settings, and is skipped; one that was interrupted
    goes on from its last checkpoint.

    Args:
        config: base configuration.
        runs: from `plan`.
        sizes: of the model of all sizes.
        output: folder of the runs.
        options: of `fit`, handed to every run.
        console: for what is going on.

    Returns:
        the trainings.

    Raises:
        ValueError, FileNotFoundError: one line, if options do not fit, or a run in the folder had other settings.
    """
    arguments, settings = {}, {}
    for one in runs:
        arguments[one] = ["--config", config, *options, *_own_options(one, sizes, output)]
        settings[one] = _resolve(arguments[one])
        if settings[one]["trainer.devices"] == "auto":  # of several GPUs one
            arguments[one] += ["--trainer.devices", "1"]
    _try_model(settings[runs[0]], sizes)
    waiting = [one for one in runs if not _is_done(output / one.name, settings[one])]
    if len(waiting) < len(runs):
        console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished: {len(waiting)} to go")
    for place, one in enumerate(waiting, start=1):
        console.rule(f"[bold]{one.name} ({place} of {len(waiting)})")
        _train(one, output / one.name, arguments[one], settings[one], console)
    return [_trained(one, output / one.name) for one in runs]


def _own_options(one: Run, sizes: list[Size], output: Path) -> list[str]:
    """What makes a run this one; it stands after the user's options and wins."""
    options = ["--seed_everything", str(one.seed), "--output_dir", str(output), "--name", one.name]
    if one.size is None:
        listed = json.dumps([list(size) for size in sizes])
        return [*options, "--model.compressed_sizes", listed, "--model.compressed_size", "null"]
    # What teaches one model many sizes is not for a model of one.
    off = {"sandwich": "false"}
    for name in ("compressed_sizes", *_MULTI_ONLY):
        options += [f"--model.{name}", off.get(name, "null")]
    return [*options, "--model.compressed_size", json.dumps(list(one.size))]


def _resolve(argv: list[str]) -> dict[str, Any]:
    """The whole configuration that `fit` would run with, as `--print_config` shows it, by dotted names."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        run_command(["fit", *argv, "--print_config"])
    settings = _flatten(yaml.safe_load(text.getvalue()), "")
    if settings.get("trainer.devices") not in (1, "1", "auto"):
        raise ValueError(
            f"--trainer.devices {settings['trainer.devices']}: sweep trains on one device; train each model with fit "
            "and give the checkpoints to sweep"
        )
    return {name: value for name, value in settings.items() if name not in _FREE}


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Nested mappings by dotted names, as they are written on the command line (without `init_args`)."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    return flat


def _try_model(settings: dict[str, Any], sizes: list[Size]) -> None:
    """Builds the model of all sizes once, so that a size that does not fit is found now and not after an hour."""
    module, _, name = settings["model.class_path"].rpartition(".")
    given = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("model.")}
    given.pop("class_path")
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if key.startswith("args."):
            arguments.setdefault("args", {})[key.partition(".")[2]] = value
        else:
            arguments[key] = value
    arguments |= {"compressed_size": None, "compressed_sizes": [list(size) for size in sizes]}
    arguments |= dict.fromkeys(("size_weights", "eval_compressed_sizes"))
    arguments["img_size"] = settings.get("data.img_size")
    getattr(import_module(module), name)(**arguments)


def _is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run is finished.

    Raises:
        ValueError: if it was run, or begun, with other settings.
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
                    "give the old settings, or another --output"
                )
    return done.is_file()


def _options_since(saved: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the options that the model and the data have got since a run was saved: it ran as they say."""
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


def _train(one: Run, folder: Path, argv: list[str], settings: dict[str, Any], console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"settings": settings}, indent=1) + "\n")
    try:
        last = find_checkpoint("last", folder)
    except FileNotFoundError:  # nothing was begun, or it did not get through its first epoch
        resume = []
    else:
        console.print(f"going on from {last}", soft_wrap=True)
        resume = ["--ckpt_path", str(last)]
    trainer = run_command(["fit", *argv, *resume]).trainer
    last = find_checkpoint("last", folder)
    done = {
        "checkpoint": str(last.relative_to(folder)),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "settings": settings,
    }
    (folder / "done.json").write_text(json.dumps(done, indent=1) + "\n")


def _trained(one: Run, folder: Path) -> Trained:
    done = _read(folder / "done.json")
    path = folder / done["checkpoint"]
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is marked as done but {path} is gone: remove {folder} to train it again")
    return Trained(one, path, done["epochs"], done["steps"])


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): remove its folder to train it again") from error
    return content
