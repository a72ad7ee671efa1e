"""What a checkpoint says of its model and data, as a configuration that the command line can change."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import datamodules
from lookupvit import tasks, trust
from lookupvit.checkpoints.contents import DATA, Contents
from lookupvit.checkpoints.pixels import known_options
from lookupvit.cli.common.explain import class_options
from lookupvit.interop.claims import check_claims

# Keys of a checkpoint's hyper-parameters that are Lightning's own.
_INTERNAL = ("_class_path", "_instantiator")

# The classes that a checkpoint or a short name may choose from.
CLASSES = {
    key: {name: getattr(home, name) for name in home.__all__} for key, home in (("model", tasks), ("data", datamodules))
}


def check_resumable(checkpoint: dict[str, Any], path: str) -> None:
    """Refuses to go on training from a file of weights alone, such as an export."""
    if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights alone, no training that could go on: begin one with --model.init_from {path}"
        )


def check_complete(saved: dict[str, Any], path: str, args: list[str]) -> None:
    """Refuses a checkpoint that says nothing of its model or data where the command line does not either.

    Args:
        saved: From `as_config`.
        path: Path of the checkpoint.
        args: Arguments of the command line.
    """
    for part, name in (("model", "ClassificationTask"), ("data", "ImageFolderDataModule")):
        if part not in saved and not _names(part, args):
            raise ValueError(
                f"checkpoint {path} does not say which {part} it is of, as one that lookupvit fit wrote does: add "
                f"--{part} CLASS, such as {name}, and its options, or a --config that has the model and the data"
            )


def for_prediction(saved: dict[str, Any], checkpoint: dict[str, Any], args: list[str]) -> None:
    """Adds what `predict` needs of the data where the training data may not be there.

    Args:
        saved: From `as_config`; the number of classes is added, and, to an image classifier that says nothing of its
            data (one that was exported), a plain folder of images.
        checkpoint: From `find.load`.
        args: Arguments of the command line; data that they name are not replaced.
    """
    classes = checkpoint.get("hyper_parameters", {}).get("num_classes")
    classifier = str(saved.get("model", {}).get("class_path")).endswith(".ClassificationTask")
    if "data" not in saved and classifier and classes is not None and not _names("data", args):
        saved["data"] = {"class_path": "ImageFolderDataModule", "init_args": {"root": "data", "num_classes": None}}
    data = saved.get("data", {}).get("init_args", {})
    if classes is not None and data.get("num_classes", classes) is None:
        data["num_classes"] = classes


def _names(part: str, args: list[str]) -> bool:
    """Whether a command line names the class of the model or the data, or has a configuration that may."""
    given = {arg.partition("=")[0] for arg in args}
    return not given.isdisjoint((f"--{part}", f"--{part}.class_path", "--config", "-c"))


def as_config(checkpoint: dict[str, Any], linked: tuple[str, ...], argv: Sequence[str] = ()) -> dict[str, Any]:
    """The checkpoint's hyper-parameters as a configuration of `model` and, where it has them, `data`.

    Args:
        checkpoint: From `load`.
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
    if checkpoint.get(DATA):
        config["data"] = checkpoint[DATA]
    for key, part in config.items():
        trust.check_section(key, part, CLASSES[key], trust.named_classes(key, list(argv)))
    return {key: {**part, "init_args": dict(part.get("init_args", {}))} for key, part in config.items()}


def with_pixels(saved: dict[str, Any], data: Any, contents: Contents) -> dict[str, Any] | None:
    """The data's part of a configuration in which images are prepared as a checkpoint's were; None: as it is.

    Args:
        saved: What the checkpoint says of its data; may be empty.
        data: The configuration of the data that is to run: its class, and what else was given.
        contents: What the checkpoint says.
    """
    class_path = (data or {}).get("class_path")
    cls = getattr(datamodules, str(class_path).rpartition(".")[2], None)
    known = known_options(contents, cls) if isinstance(cls, type) else {}
    if not known:
        return None
    options = class_options(f"{cls.__module__}.{cls.__qualname__}")  # without those that it settles for its parents
    kept = {key: value for key, value in (saved.get("init_args") or {}).items() if key in options}
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
        saved: From `as_config`.
        now: The present configuration of the same keys, `{"model": {"class_path": ..., "init_args": ...}}`.
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
