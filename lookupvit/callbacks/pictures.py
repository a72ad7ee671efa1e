"""Pictures: of a training batch as the model sees it, to the loggers; of images with boxes and masks on them.

Letters: (Y, X) pixels, n objects.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from lookupvit.callbacks.show import can_show, show_picture


class BatchPictures(Callback):
    """Writes the first training batch, augmented and un-normalised, to the loggers as `train/batch`.

    Args:
        count: Pictures at most.
        columns: Pictures per row.
    """

    def __init__(self, count: int = 32, columns: int = 8) -> None:
        self.count = count
        self.columns = columns
        self.done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes once, at the first batch."""
        if self.done or not trainer.is_global_zero:
            return
        self.done = True
        images = batch["images"] if isinstance(batch, dict) else batch[0]
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or not can_show(trainer):
            return  # a list of images, clips, or features in place of images
        data = trainer.datamodule
        grid = picture_grid(images[: self.count], getattr(data, "mean", None), getattr(data, "std", None), self.columns)
        show_picture(trainer, "train/batch", grid)


def denormalised(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int = -3
) -> Tensor:
    """Undoes a normalisation.

    Args:
        images: Images of any shape, such as `(3, Y, X)` or `(B, 3, Y, X)`.
        mean: Mean of each channel, for pixels in [0, 1]; None if the images are not normalised, as is `std`.
        std: Standard deviation of each channel.
        channels: The axis of the channels; that of clips `(B, 3, T, Y, X)` is 1.

    Returns:
        The same shape in [0, 1], float32 on the CPU.
    """
    images = images.detach().float().cpu()
    if mean is not None and std is not None:
        shape = [1] * images.ndim
        shape[channels] = -1
        images = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return images.clamp(0, 1)


def picture_grid(
    images: torch.Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, columns: int = 8
) -> torch.Tensor:
    """One picture of many: images `(B, 3, H, W)`, normalised by `mean` and `std`, to `(3, Y, X)` in [0, 1]."""
    return make_grid(denormalised(images, mean, std), nrow=columns, padding=2)


@cache
def _font() -> str:
    """A font that can be drawn in any size; matplotlib brings it along."""
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def instance_colours() -> list[tuple[int, int, int]]:
    """Ten colours that differ much, for objects side by side."""
    return [tuple(round(255 * part) for part in colour) for colour in matplotlib.colormaps["tab10"].colors]


def draw_objects(image: Tensor, objects: Mapping[str, Any], names: Sequence[str] | None = None) -> Tensor:
    """Draws each object in a colour of its own: its mask, its box, and its class with its score.

    Args:
        image: `(3, Y, X)`, uint8.
        objects: "boxes" `(n, 4)` in pixels of the image, "labels" `(n,)` from 1, and perhaps "scores" `(n,)` and
            "masks" `(n, Y, X)`.
        names: Of the classes; label k is the name k - 1. None: the labels.

    Returns:
        The picture `(3, Y, X)`, uint8; of an image without objects the image itself.
    """
    objects = {key: value.detach().cpu() for key, value in objects.items() if isinstance(value, Tensor)}
    count = len(objects["labels"])
    if not count:
        return image
    colours = [instance_colours()[place % 10] for place in range(count)]
    if "masks" in objects:
        image = draw_segmentation_masks(image, objects["masks"].bool(), alpha=0.45, colors=colours)
    words = [str(k) if names is None else names[k - 1] for k in objects["labels"].tolist()]
    if "scores" in objects:
        words = [f"{word} {score:.2f}" for word, score in zip(words, objects["scores"].tolist(), strict=True)]
    side = max(image.shape[1:])
    look = {"width": max(1, round(side / 320)), "font": _font(), "font_size": max(10, round(side / 45))}
    look |= {"label_colors": "white", "label_background_colors": colours, "fill_labels": True}
    return draw_bounding_boxes(image, objects["boxes"], words, colours, **look)


def as_bytes(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """A normalised image `(3, Y, X)` as pixels: the same in uint8."""
    return (255 * denormalised(image, mean, std)).round().to(torch.uint8)


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]], side: int = 480, gap: int = 6) -> Tensor:
    """Pairs of pictures `(3, Y, X)` of one size each, uint8, as rows of one picture `(3, height, width)`.

    Args:
        pairs: The left and the right picture of each row.
        side: Pixels that the longer side of each is resized to.
        gap: White pixels between them.
    """
    rows = []
    for pair in pairs:
        scale = side / max(pair[0].shape[1:])
        size = [max(1, round(scale * length)) for length in pair[0].shape[1:]]
        small = [F.interpolate(one[None].float(), size, mode="bilinear", antialias=True)[0] for one in pair]
        left, right = (F.pad(one, (0, gap, 0, gap), value=255.0) for one in small)
        rows.append(torch.cat([left, right], dim=2))
    width = max(row.shape[2] for row in rows)
    rows = [F.pad(row, (0, width - row.shape[2]), value=255.0) for row in rows]
    return torch.cat(rows, dim=1).round().clamp(0, 255).to(torch.uint8)
