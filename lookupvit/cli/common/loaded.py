"""Models from checkpoints, and the data that each was trained on."""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader, Subset

from lookupvit import tasks, trust
from lookupvit.analysis.cost import lookup_grid
from lookupvit.analysis.sweep import Size, Subject
from lookupvit.checkpoints import find
from lookupvit.checkpoints.contents import Contents, contents_of, is_exported
from lookupvit.cli.common import stored
from lookupvit.cli.common.errors import raise_cause
from lookupvit.cli.common.explain import explain
from lookupvit.grid import check_compressed_size
from lookupvit.tasks.belonging import first_difference, say, say_untrained

CHOSEN = "chosen_by_file"  # options of a configuration of data that the checkpoint chose, not the user


@dataclass
class Loaded:
    """A checkpoint's model.

    Attributes:
        label: Its name in tables and pictures.
        path: The checkpoint.
        task: The task, whose `model` is on its device and in evaluation mode.
        subject: The model with the sizes and the head to sweep.
        data: Configuration of its data, `{"class_path": ..., "init_args": {...}}`.
        contents: What the checkpoint says.
    """

    label: str
    path: Path
    task: LightningModule
    subject: Subject
    data: dict[str, Any]
    contents: Contents

    @property
    def architecture(self) -> str:
        """Text that two models share when they differ in their weights alone: such models are timed once."""
        keys = ("name", "args", "num_classes", "img_size", "head", "head_args", "fuse_compressed")
        own = getattr(self.subject.model, "arguments", {}) if isinstance(self.task, tasks.DetectionTask) else {}
        return json.dumps([*(str(self.task.hparams.get(key)) for key in keys), str(own)])


def load(path: Path, label: str, sizes: list[Size] | None, head: str | None, device: str) -> Loaded:
    """The model of a checkpoint.

    Args:
        path: Checkpoint that `fit` wrote.
        label: Name in tables and pictures.
        sizes: Compressed sizes to sweep; None: those that it was trained or evaluated at.
        head: "both", or one head of a LookupViT; None: what the task evaluates.
        device: Where the model goes.

    Raises:
        ValueError, FileNotFoundError: One line, if it is no checkpoint of an image classifier, or the head is unknown.
    """
    task, contents = load_task(path, device)
    dense = isinstance(task, tasks.SegmentationTask | tasks.DetectionTask)
    if not (dense or isinstance(task, tasks.ClassificationTask)) or isinstance(task, tasks.VideoTask):
        raise ValueError(
            f"checkpoint {path} is of {type(task).__name__}: sweep scores image classifiers, segmenters and detectors "
            "only"
        )
    if dense and head is not None:
        raise ValueError(f"--head {head} is of classifiers: the model of {path} has none to choose, leave it out")
    model = task.model
    if model.compressed_size is None:
        return Loaded(label, path, task, Subject(model, (None,)), contents.data, contents)
    head = getattr(task, "eval_head", None) if head is None else None if head == "both" else head
    if head is not None and head not in model.heads:
        raise ValueError(f"--head {head}: the model of {path} has {', '.join(model.heads)}")
    chosen = sizes or task.eval_sizes or contents.trained_sizes or [model.compressed_size]
    say_untrained(contents, chosen)
    return Loaded(label, path, task, Subject(model, tuple(chosen), head), contents.data, contents)


def load_task(path: Path, device: str) -> tuple[LightningModule, Contents]:
    """The task of a checkpoint, or of a folder of `save_pretrained`, in evaluation mode on `device`; what it says.

    Raises:
        ValueError, FileNotFoundError: One line, if it is no checkpoint of a whole model.
    """
    checkpoint = find.load(path)
    config = stored.as_config(checkpoint, linked=())
    if "model" not in config or "state_dict" not in checkpoint:
        raise ValueError(f"checkpoint {path} holds no whole model: give one that lookupvit fit wrote into one file")
    task = _instantiate("model", LightningModule, ["--config", json.dumps({"model": config["model"]})])
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(stored.explain_mismatch(str(error), path)) from error
    return task.eval().to(device), contents_of(checkpoint, path)


def checkpoint_of(name: str | Path) -> Path:
    """The checkpoint that an argument means: itself, an exported folder, or the newest one of a folder of runs."""
    path = Path(find.of_run(str(name))) if not Path(name).exists() else Path(name)
    return find.find_checkpoint("last", path) if path.is_dir() and not is_exported(path) else path


def check_sizes(loaded: Loaded, img_size: tuple[int, int]) -> None:
    """Raises a one-line ValueError if the model cannot take images of `img_size` at each of its sizes."""
    grid = lookup_grid(loaded.subject.model, img_size)
    for size in loaded.subject.sizes:
        if size is not None:
            try:
                check_compressed_size(size, grid)
            except ValueError as error:
                raise ValueError(f"{loaded.label} at {img_size[0]}x{img_size[1]} px: {error}") from error


def labels_of(paths: list[Path]) -> list[str]:
    """A short name for each checkpoint: the folder of its experiment, and as much more as tells them apart."""
    parts = []
    for path in paths:
        folders = [part for part in path.absolute().parent.parts if part not in ("checkpoints", path.anchor)]
        version = folders.pop() if folders and re.fullmatch(r"version_\d+", folders[-1]) else None
        lightning = version is not None or path.parent.name == "checkpoints"
        # from the most telling part to the least
        parts.append([folders[-1], version, path.stem] if lightning and folders else [path.stem, *folders[-1:]])
    for count in range(1, 4):
        names = ["/".join(str(part) for part in row[:count] if part) for row in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} #{i}" for i, name in enumerate(names)]


def data_config(contents: Contents, overrides: list[str], img_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The whole configuration of the data to run a checkpoint on, with images prepared as the checkpoint's were.

    Args:
        contents: What the checkpoint says of its data and pixels.
        overrides: `--data.*` options.
        img_size: Pixels, in place of the configuration's; None keeps it.

    Raises:
        ValueError: For options that do not fit, or if the checkpoint says nothing of its data.
    """
    data = contents.data
    if not data and not any(arg == "--data" or arg.startswith("--data=") for arg in overrides):
        raise ValueError(
            f"checkpoint {contents.source} does not say which data it was trained on: add --data CLASS, "
            "such as ImageFolderDataModule, and --data.root DIR"
        )
    if data:  # before the parser imports the class that it names
        trust.check_section("data", data, stored.CLASSES["data"], trust.named_classes("data", overrides))
    given = list(overrides)
    if img_size is not None:
        given += ["--data.img_size", json.dumps(list(img_size))]

    def parse(saved: dict[str, Any]) -> Any:
        argv = ["--config", json.dumps(trust.marked({"data": saved}))] if saved else []
        return _parse("data", LightningDataModule, argv + given)["data"]

    config = parse(data)
    if known := stored.with_pixels(data, stored.plain(config), contents):
        config = parse(known)
    chosen = trust.settle(config, "data", stored.CLASSES["data"], fitting=False)
    return {**stored.plain(config), CHOSEN: sorted(chosen)}


def with_data(
    loaded: list[Loaded], overrides: list[str], img_size: tuple[int, int] | None = None
) -> list[tuple[LightningDataModule, list[Loaded]]]:
    """The data to score models on, and the models that see the same images, so that they share their decoding.

    Args:
        loaded: Models, by different labels.
        overrides: As for `data_config`, as is `img_size`.

    Raises:
        ValueError: In one line, if models and data do not go together.
    """
    groups: dict[str, list[Loaded]] = {}
    for one in loaded:
        config = data_config(one.contents, overrides, img_size)
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(one)
    found = []
    for text, group in groups.items():
        data = data_module(json.loads(text))
        for one in group:
            check_sizes(one, data.img_size)
            if data.num_classes != one.subject.model.num_classes:
                raise ValueError(
                    f"{one.label} tells {one.subject.model.num_classes} classes apart and the data has "
                    f"{data.num_classes}: give the data that it was trained on (--data.root)"
                )
            names, saved = getattr(data, "class_names", None), one.contents.class_names
            if names and saved and (different := first_difference(saved, list(names))):
                say(f"Warning: the classes are not those of {one.label}: {different}")
        found.append((data, group))
    return found


def data_module(config: dict[str, Any], prepare: bool = True) -> LightningDataModule:
    """The data of a configuration, downloaded or rendered where it does that and `prepare` is true."""
    config = dict(config)
    chosen = set(config.pop(CHOSEN, ()))
    data = _instantiate("data", LightningDataModule, ["--config", json.dumps({"data": config})])
    data.chosen_by_file = chosen
    if prepare:
        data.prepare_data()
    return data


def instantiate_data(argv: list[str]) -> LightningDataModule:
    """The data that `--data CLASS --data.X VALUE` says."""
    return _instantiate("data", LightningDataModule, argv)


def loader_of(data: LightningDataModule, split: str, limit: int | None) -> DataLoader:
    """Batches of a split in the order of the data.

    Args:
        data: The data.
        split: "val" or "test".
        limit: As for `limited`.
    """
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    return limited(loader, limit)


def limited(loader: DataLoader, limit: int | None) -> DataLoader:
    """The same images, or about `limit` of them, evenly spread, so that data sorted by class stays balanced."""
    count = len(loader.dataset)
    if limit is None or limit >= count:
        return loader
    chosen = Subset(loader.dataset, [i * count // limit for i in range(limit)])
    return DataLoader(chosen, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def calibration_loader(
    data: LightningDataModule, split: str, loader: DataLoader, limit: int | None
) -> DataLoader | None:
    """The validation images, where they are others than the scored ones; None where they are not, or there are none."""
    if split == "val":
        return None
    try:
        other = loader_of(data, "val", limit)
    except FileNotFoundError:  # a tree without a validation split
        return None
    return None if _files(other) is _files(loader) else other


def _files(loader: DataLoader) -> Any:
    """The data set that a loader reads, or that its subset was taken from."""
    dataset = loader.dataset
    return dataset.dataset if isinstance(dataset, Subset) else dataset


def _parser(key: str, base: type) -> LightningArgumentParser:
    parser = LightningArgumentParser(parser_mode="omegaconf+", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(base, key, subclass_mode=True)
    return parser


def _parse(key: str, base: type, argv: list[str]) -> Any:
    parser = _parser(key, base)
    try:
        return parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(explain(trust.unmarked(str(error)), parser, stored.CLASSES)) from error


def _instantiate(key: str, base: type, argv: list[str]) -> Any:
    config = _parse(key, base, argv)
    with raise_cause():
        return _parser(key, base).instantiate_classes(config)[key]
