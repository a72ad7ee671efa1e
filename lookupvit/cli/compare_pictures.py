"""Pictures of `lookupvit compare`: what segmenters and detectors find in images that they were not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningDataModule, LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2.functional import to_image

from lookupvit.callbacks.answers.segmentation import overlay, palette_of
from lookupvit.callbacks.pictures import as_bytes, draw_objects
from lookupvit.metrics.detection import at_original_size
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.writing import whole

_SIDE = 320  # pixels of the longer side of each picture
_SCORE = 0.5  # least score of an object that is drawn


@dataclass(frozen=True)
class Seen:
    """The first test images of a run.

    Attributes:
        files: Their names.
        truth: For each a picture `(3, Y, X)`, uint8, with the true classes or objects.
        found: The same with what the model finds.
    """

    files: list[str]
    truth: list[Tensor]
    found: list[Tensor]


def look(task: LightningModule, data: LightningDataModule, count: int = 4) -> Seen:
    """What a segmenter or detector finds in the first images of the test data.

    Args:
        task: A `SegmentationTask` or `DetectionTask`.
        data: Its data, set up for the test.
        count: Images at most, from the first batch.
    """
    batch = next(iter(data.test_dataloader()))
    with torch.inference_mode():
        predicted = task.eval().predict_step(batch, 0)
    draw = _classes if isinstance(task.model, Segmenter) else _objects
    pairs = [draw(batch, predicted, place, data) for place in range(min(count, len(batch["files"])))]
    return Seen(
        [str(file) for file in batch["files"][:count]], [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    )


def _classes(batch: dict[str, Any], predicted: dict[str, Any], place: int, data: Any) -> tuple[Tensor, Tensor]:
    height, width = batch["sizes"][place].tolist()
    image = _enlarged(as_bytes(batch["images"][place, :, :height, :width], data.mean, data.std))
    palette = palette_of(data, data.num_classes)
    masks = (batch["masks"][place, :height, :width], predicted["masks"][place])
    truth, found = (F.interpolate(mask[None, None].float(), image.shape[1:])[0, 0].long() for mask in masks)
    return to_image(overlay(image, truth, palette)), to_image(overlay(image, found, palette))


def _objects(batch: dict[str, Any], predicted: dict[str, Any], place: int, data: Any) -> tuple[Tensor, Tensor]:
    image = batch["images"][place]
    truth, found = at_original_size(batch["targets"][place], image), predicted["detections"][place]
    found = {key: value[found["scores"] >= _SCORE] for key, value in found.items()}
    picture, size = _enlarged(as_bytes(image, data.mean, data.std)), predicted["sizes"][place]
    parts = ({key: truth[key] for key in found if key in truth}, found)
    truth, found = (draw_objects(picture, _moved(one, size, picture), data.class_names) for one in parts)
    return truth, found


def _enlarged(image: Tensor) -> Tensor:
    """A picture `(3, Y, X)`, uint8, whose longer side has `_SIDE` pixels."""
    scale = _SIDE / max(image.shape[1:])
    size = [max(1, round(scale * side)) for side in image.shape[1:]]
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)


def _moved(objects: dict[str, Tensor], size: Sequence[int], picture: Tensor) -> dict[str, Tensor]:
    """Objects of an image of `size` (height, width) as those of a picture `(3, Y, X)` of it."""
    down, right = (new / old for new, old in zip(picture.shape[1:], size, strict=True))
    moved = {**objects, "boxes": objects["boxes"].float() * torch.tensor([right, down, right, down])}
    if "masks" in objects:  # (n, height, width) -> (n, Y, X)
        masks = objects["masks"].float()
        moved["masks"] = F.interpolate(masks[:, None], picture.shape[1:])[:, 0] if len(masks) else masks
    return moved


def draw_side_by_side(runs: dict[str, Seen], path: Path) -> Path | None:
    """A row for each image: the truth, then what each run finds.

    Args:
        runs: By name.
        path: Picture to write, which is returned; None if the runs were tested on different images.
    """
    first = next(iter(runs.values()))
    if any(seen.files != first.files for seen in runs.values()):
        return None
    columns = {"truth": first.truth, **{name: seen.found for name, seen in runs.items()}}
    rows = len(first.files)
    figure = Figure(figsize=(2.2 * len(columns), 2.2 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=10)
        for place, picture in zip(column, pictures, strict=True):
            place.imshow(picture.permute(1, 2, 0).numpy())
            place.axis("off")
    with whole(path) as partial:
        figure.savefig(partial, dpi=100)
    return path
