"""Checkpoints on the command line: which file, which hyper-parameters, and what differs from them now."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text

import datamodules
from lookupvit import tasks, trust
from lookupvit.checkpoint_io import damage, load_exported
from lookupvit.checkpoints.contents import Contents, is_exported
from lookupvit.checkpoints.pixels import known_options, takes
from lookupvit.model.claims import check_claims
from lookupvit.sharded_checkpoint import check_sharded

# Keys of a checkpoint's hyper-parameters that are Lightning's own.
_INTERNAL = ("_class_path", "_instantiator")
DATA_KEY = "data_config"
# What a checkpoint may choose from.
CLASSES = {
    key: {name: getattr(home, name) for name in home.__all__} for key, home in (("model", tasks), ("data", datamodules))
}


class KeepData(Callback):
    """Keeps the data's configuration in each checkpoint, so that a checkpoint alone says how its images were made.

    Args:
        config: ``{"class_path": str, "init_args": {...}}``, plain data.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration."""
        checkpoint[DATA_KEY] = self.config


def of_run(path: str) -> str:
    """The newest checkpoint of a path that is the folder of a run or an experiment; any other path as it is."""
    folder = Path(path)
    if not folder.is_dir() or (folder / "meta.pt").exists() or not next(folder.rglob("last*.ckpt"), None):
        return path  # a file, or a checkpoint of FSDP, which is a folder
    return str(find_checkpoint("last", folder))


def check_complete(saved: dict[str, Any], path: str, args: list[str]) -> None:
    """Refuses a checkpoint that says nothing of its model or data where the command line does not either.

    Args:
        saved: From `as_config`.
        path: Of the checkpoint.
        args: Of the command line.
    """
    for part in ("model", "data"):
        if part not in saved and not any(arg.startswith((f"--{part}", "--config", "-c")) for arg in args):
            raise ValueError(
                f"checkpoint {path} does not say which {part} it is of, as one that lookupvit fit wrote does: add a "
                "--config that has the model and the data"
            )


def find_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint that ``last`` or ``best`` means.

    Args:
        name: ``"last"``: the newest ``last.ckpt`` below the folder; ``"best"``: the best one of the same run.
        folder: Output folder of the experiment, such as ``outputs/demo``.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = _by_age(folder.rglob("last*.ckpt"))
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {name}: no checkpoint below {folder}: train first, or give the path of a checkpoint"
        )
    if name == "last":
        return _newest_whole(found)
    callbacks = load(found[-1]).get("callbacks", {})
    # The callback that writes last.ckpt watches no metric; its "best" is the newest.
    best = [state["best_model_path"] for state in callbacks.values() if state.get("monitor")]
    # The folder may have been moved since: what counts is the name beside last.ckpt.
    files = [file for path in best for file in (Path(path), found[-1].parent / Path(path).name) if file.is_file()]
    if not files:
        raise FileNotFoundError(f"--ckpt_path best: the run of {found[-1]} kept none: give the path of a checkpoint")
    return files[0]


def _by_age(files: Iterable[Path]) -> list[Path]:
    """Oldest first, runs one after the other; of one run, what is called "previous" is older whatever its time says.

    A copy of a folder has the times of the copying.
    """
    times = {file: file.stat().st_mtime for file in files}
    run = {parent: max(t for file, t in times.items() if file.parent == parent) for parent in {f.parent for f in times}}
    return sorted(times, key=lambda file: (run[file.parent], file.parent, "previous" not in file.name, times[file]))


def _newest_whole(found: list[Path]) -> Path:
    """The newest file that is whole; the damaged ones that are newer are named."""
    for file in reversed(found):
        wrong = damage(file, zipped=True)
        if wrong is None:
            return file
        rank_zero_only(Console(stderr=True).print)(
            f"--ckpt_path last: {file} is left out: {wrong}; trying the one before", soft_wrap=True, highlight=False
        )
    raise ValueError(f"--ckpt_path last: none of the {len(found)} checkpoints beside {found[-1]} is whole: train anew")


def load(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, read without running any code in it.

    Args:
        path: A file, the folder that FSDP writes, or one that ``save_pretrained`` writes.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not a checkpoint, or holds more than plain data and tensors.
    """
    path = Path(path)
    if is_exported(path):
        return load_exported(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give an existing file, or last, or best")
    file = path / "meta.pt" if path.is_dir() else path
    if path.is_dir():
        check_sharded(path)
    if wrong := damage(path):
        raise ValueError(f"checkpoint {path} cannot be read: {wrong}; give another, or last for the newest whole one")
    try:
        checkpoint = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # what torch raises for a file that is no checkpoint depends on its first bytes
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged, no checkpoint, or holds more than plain data and tensors"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}: expected one that lookupvit fit wrote"
        )
    return checkpoint


def as_config(checkpoint: dict[str, Any], linked: tuple[str, ...], argv: Sequence[str] = ()) -> dict[str, Any]:
    """The checkpoint's hyper-parameters as a configuration of ``model`` and, where it has them, ``data``.

    Args:
        checkpoint: From :func:`load`.
        linked: Model arguments that the data decide; they are left out.
        argv: The user's arguments: classes outside this project are taken if these name them too.

    Raises:
        ValueError: If it says what a file may not, see `lookupvit.trust`; one line.
    """
    config = {}
    model = checkpoint.get("hyper_parameters", {})
    check_claims(model, checkpoint.get("state_dict"), "the checkpoint")
    if not isinstance(model, Mapping):
        raise ValueError(f"the checkpoint's hyper_parameters are a {type(model).__name__}: expected a mapping")
    class_path = model.get("_class_path", checkpoint.get("task"))
    if model and class_path:
        init = {key: value for key, value in model.items() if key not in (*_INTERNAL, *linked)}
        config["model"] = {"class_path": class_path, "init_args": plain(init)}
    if checkpoint.get(DATA_KEY):
        config["data"] = checkpoint[DATA_KEY]
    for key, part in config.items():
        trust.check_section(key, part, CLASSES[key], trust.named_classes(key, list(argv)))
    return {key: {**part, "init_args": dict(part.get("init_args", {}))} for key, part in config.items()}


def with_pixels(saved: dict[str, Any], data: Any, contents: Contents) -> dict[str, Any] | None:
    """The data's part of a configuration in which images are prepared as a checkpoint's were; None: as it is.

    Args:
        saved: What the checkpoint says of its data; may be empty.
        data: The configuration of the data that is to run: its class, and what else was given.
        contents: Of the checkpoint.
    """
    class_path = (data or {}).get("class_path")
    cls = getattr(datamodules, str(class_path).rpartition(".")[2], None)
    known = known_options(contents, cls) if isinstance(cls, type) else {}
    if not known:
        return None
    kept = {key: value for key, value in (saved.get("init_args") or {}).items() if takes(cls, key)}
    return {"class_path": class_path, "init_args": {**kept, **known}}


def plain(value: Any) -> Any:
    """Tuples as lists and namespaces as dicts, so that what was saved compares with what was parsed."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Init arguments that differ: name, value in the checkpoint, value now.

    Args:
        saved: From :func:`as_config`.
        now: The present configuration of the same keys, ``{"model": {"class_path": ..., "init_args": ...}}``.
    """
    rows = []
    for key, part in saved.items():
        present = plain(now.get(key)) or {}
        if part["class_path"] != present.get("class_path"):
            rows.append((key, part["class_path"], present.get("class_path")))
        given = present.get("init_args", {})
        rows += [
            (f"{key}.{name}", value, given[name])
            for name, value in part["init_args"].items()
            if name in given and value != given[name] and name != "predict_path"
        ]
    return rows


def print_differences(rows: list[tuple[str, Any, Any]], path: str | Path) -> None:
    """Prints what the command line changed, as a table of name, checkpoint, now."""
    if not rows:
        return
    console = Console()
    console.print(f"Changed since {path}:", soft_wrap=True)
    table = Table()
    for column in ("name", "checkpoint", "now"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def explain_mismatch(message: str, path: str | Path) -> str:
    """One line for a checkpoint whose weights do not fit the model, out of torch's list of all of them."""
    sizes = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\((.*?)\) from checkpoint.*?torch\.Size\((.*?)\)", message, re.DOTALL
    )
    keys = re.findall(r'"([^"\s]+)"', message)
    head = next((pair for pair in sizes if re.search(r"\bheads?\b", pair[0])), None)
    if head and len({tuple(shape.strip("[]").split(",")[1:]) for shape in head[1:]}) == 1:  # all but the classes fit
        theirs, ours = (shape.strip("[]").split(",")[0] for shape in head[1:])
        return (
            f"checkpoint {path} has {theirs} classes, the data {ours}: give data of the checkpoint's classes (of the "
            "robustness sets of ImageNet those that --data.wnids lists, in the order of the checkpoint's)"
        )
    if sizes:
        what = f"{sizes[0][0]} has shape {sizes[0][1]} in it and {sizes[0][2]} here"
        more = len(sizes) - 1
    else:
        missing = "Missing key" in message
        what = f"{keys[0] if keys else 'a weight'} is {'missing in it' if missing else 'not in the model'}"
        more = len(keys) - 1
    return (
        f"checkpoint {path} does not fit the model: {what}{f' (and {more} more)' if more > 0 else ''}; "
        "give the checkpoint's own model name, arguments, image size and classes, or leave those options out"
    )
