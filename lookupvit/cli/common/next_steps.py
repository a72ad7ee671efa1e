"""The commands to try after `lookupvit compare`, with the paths that it has just made."""

import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from lookupvit.grid import Size, size_name
from lookupvit.tasks import CaptioningTask, ClassificationTask, VideoTask


def next_steps(checkpoints: list[str], size: Size | None, task: LightningModule, data: Any) -> list[str]:
    """Commands that can be run as they are; none for tasks that have no answers in words.

    Args:
        checkpoints: Of the runs; the commands begin with the first.
        size: The first model's compressed size; None of a plain ViT.
        task: The task of the runs.
        data: Their DataModule, whose test data give a file to predict.
    """
    first, file = shlex.quote(checkpoints[0]), _a_file(data)
    if file is None or not isinstance(task, ClassificationTask | CaptioningTask):
        return []
    fewer = None if size is None else (*size[:-2], *(max(1, n - 1) for n in size[-2:]))  # time stays as it is
    smaller = "" if fewer is None else f" --model.compressed_size '{list(fewer)}'"
    predict = f"lookupvit predict --ckpt_path {first} --data.predict_path {shlex.quote(file)}"
    test = f"lookupvit test --ckpt_path {first}{smaller}"
    if isinstance(task, CaptioningTask):
        return [predict, f"{predict} --model.generation '{{method: beam, beams: 5, num_return: 3}}'", test]
    if isinstance(task, VideoTask):
        return [predict, f"lookupvit attend {first} --path {shlex.quote(file)}", test]
    every = " ".join(map(shlex.quote, checkpoints))
    sizes = "" if size is None else f" --sizes {size_name(fewer)} {size_name(size)}"
    return [f"lookupvit sweep {every}{sizes}", predict, f"lookupvit app {every}"]


def _a_file(data: Any) -> str | None:
    """The path of a test image or clip; None if the data do not say, as those in memory and in shards."""
    dataset = data.test_dataloader().dataset
    samples = getattr(dataset, "samples", None) or getattr(getattr(dataset, "images", None), "samples", None)
    if not samples:
        return None
    path = samples[0][0]
    return str(path) if isinstance(path, str | Path) and Path(path).is_file() else None
