"""Scores many models on many test sets, each image prepared once; what is scored is kept, and never scored again."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.robustness.sets import TestSet
from lookupvit.analysis.sweep import Subject, collect_logits
from lookupvit.cli.common.loaded import Loaded
from lookupvit.grid import size_name
from lookupvit.metrics.robustness import hits_in
from lookupvit.tasks.scores import PLAIN
from lookupvit.writing import write_text

# Options of the data that the pixels of an evaluation follow from.
_PIXELS = ("interpolation", "crop_pct", "mean", "std")


@dataclass
class Kept:
    """What one checkpoint was scored on so far, and the file that says so.

    Attributes:
        path: The file.
        about: What the scores depend on: the checkpoint's bytes, the head and the data.
        sets: By the name of the set and by compressed size, which images were right, `(n,)` bool.
    """

    path: Path
    about: dict[str, Any]
    sets: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def load(self) -> "Kept":
        """Takes what the file holds, where there is one.

        Raises:
            ValueError: If it was scored with something else, or cannot be read; one line.
        """
        if not self.path.is_file():
            return self
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            about = dict(kept["about"])
            self.sets = {
                name: {size: _unpacked(text, kept["images"][name]) for size, text in by_size.items()}
                for name, by_size in kept["hits"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}): remove it to score anew") from error
        if different := [key for key, value in self.about.items() if about.get(key) != value]:
            raise ValueError(
                f"{self.path} is of another {different[0]}: remove it to score anew, or give another --output_dir"
            )
        return self

    def save(self) -> None:
        """Writes all of it."""
        images = {name: len(next(iter(by_size.values()))) for name, by_size in self.sets.items()}
        hits = {
            name: {size: np.packbits(hit.numpy()).tobytes().hex() for size, hit in by_size.items()}
            for name, by_size in self.sets.items()
        }
        write_text(self.path, json.dumps({"about": self.about, "images": images, "hits": hits}, indent=1) + "\n")


def set_name(one: TestSet) -> str:
    """A set's name in files: "clean", "corrupted/fog/3"."""
    return "/".join([one.name, *([one.part, str(one.severity)] if one.part else [])])


def size_key(size: tuple[int, ...] | None) -> str:
    """A compressed size's name in files; that of a ViT is the same as in `robustness.json` of `lookupvit test`."""
    return PLAIN if size is None else size_name(size)


def score_all(
    plan: list[tuple[LightningDataModule, list[Loaded]]], folder: Path, device: str, console: Console
) -> dict[str, tuple[list[TestSet], Kept]]:
    """Scores every model at every size on every set, set by set; after each the results so far are on disk.

    Args:
        plan: From `with_data`.
        folder: Where the results are kept, one file for each checkpoint.
        device: Where the models are.
        console: For the progress.

    Returns:
        By label: the sets, and what was kept of them.

    Raises:
        ValueError: One line, for data without several test sets, or results that were kept of something else.
    """
    found = {}
    for data, group in plan:
        if not hasattr(data, "test_sets"):
            raise ValueError(
                f"{type(data).__name__} has no corrupted images: add --config configs/robustness/imagenette_c.yaml, or "
                "--data CorruptedFolderDataModule"
            )
        data.setup("test")
        if detecting := [one.name for one in data.test_sets if one.role != "accuracy"]:
            raise ValueError(
                f"{detecting[0]} is scored by detection, not by accuracy: lookupvit test scores it; point "
                f"--data.{detecting[0].replace('-', '_')} to no folder here"
            )
        images = _images(data)
        for one in group:
            found[one.label] = (data.test_sets, _kept(one, images, folder).load())
    for data, group in plan:
        _score_group(data, group, {one.label: found[one.label][1] for one in group}, device, console)
    return found


def _score_group(
    data: LightningDataModule, group: list[Loaded], kept: dict[str, Kept], device: str, console: Console
) -> None:
    loader = data.test_dataloader()
    ends = [0, *loader.dataset.ends.tolist()]
    todo = []
    for place, one_set in enumerate(data.test_sets):
        subjects = {one.label: missing for one in group if (missing := _missing(one, kept[one.label], one_set))}
        if subjects:
            todo.append((one_set, range(ends[place], ends[place + 1]), subjects))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("scoring", total=sum(len(places) for _, places, _ in todo))
        for number, (one_set, places, subjects) in enumerate(todo, start=1):
            progress.update(bar, description=f"{set_name(one_set)} ({number} of {len(todo)})")
            part = _part(loader, places)
            batches = ((images, targets) for images, (targets, _) in part)
            logits, targets = collect_logits(subjects, batches, device, _advance(progress, bar))
            for label, by_size in logits.items():
                right = {size_key(size): hits_in(one_set, value, targets) for size, value in by_size.items()}
                kept[label].sets.setdefault(set_name(one_set), {}).update(right)
                kept[label].save()
            if not console.is_terminal:
                console.print(f"{set_name(one_set)}: {number} of {len(todo)} sets", highlight=False)


def _advance(progress: Progress, bar: Any) -> Callable[[int], None]:
    return lambda images: progress.advance(bar, images)


def _part(loader: DataLoader, places: range) -> DataLoader:
    """The same batches of some of the images."""
    part = Subset(loader.dataset, places)
    return DataLoader(part, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def _missing(one: Loaded, kept: Kept, one_set: TestSet) -> Subject | None:
    """The model at the sizes that are not scored on a set yet; None if all are."""
    done = kept.sets.get(set_name(one_set), {})
    sizes = tuple(size for size in one.subject.sizes if size_key(size) not in done)
    return Subject(one.subject.model, sizes, one.subject.head) if sizes else None


def _kept(one: Loaded, images: str, folder: Path) -> Kept:
    name = re.sub(r"[^\w.-]+", "_", one.label)
    about = {"checkpoint": _digest(one.path), "head": one.subject.head or "all", "data": images}
    return Kept(folder / f"{name}.json", about)


def _images(data: LightningDataModule) -> str:
    """A hash of what decides on images and pixels: the files by class and name, wherever they lie, and the options."""
    first = data.dataset("test").data[0]
    files = [("/".join(Path(path).parts[-2:]), target) for path, target in getattr(first, "samples", ())]
    options = [data.img_size, getattr(data, "patch_size", None), *(data.options[name] for name in _PIXELS)]
    return hashlib.sha256(repr([type(data).__name__, len(first), files, options]).encode()).hexdigest()


def _digest(path: Path) -> str:
    """The hash of a checkpoint's bytes, of a file or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _unpacked(text: str, count: int) -> Tensor:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)
    return torch.from_numpy(bits).bool()
