"""Segmentations as pictures: files (`predict`), and beside truth in the loggers (`fit`)."""

import csv
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from datamodules.dense.masks import palette_of as voc_palette
from datamodules.images.decode import decode_rgb
from lookupvit.callbacks.answers.writer import TwoFilesWriter
from lookupvit.callbacks.pictures import denormalised
from lookupvit.callbacks.show import can_show, show_picture
from lookupvit.writing import whole

_SHARE = 0.5  # of the classes' colours in an overlay


class SegmentationWriter(TwoFilesWriter):
    """Writes for each image an overlay and a mask, and `segmentations.jsonl` and `segmentations.csv`, as they come.

    `overlays/NAME.png` is the image with the colours of the classes over it; `masks/NAME.png` has the number of a class
    for each pixel, and the colours as its palette. Files of equal names get a number.

    A line of JSON is `{"file": str, "mask": str, "overlay": str, "shares": {class: fraction of the pixels}}`, and the
    CSV has the columns `file, mask, overlay, error` and a share for each class. A file that could not be read has its
    line, too: `file` and `error`.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    names, what = ("segmentations.jsonl", "segmentations.csv"), "segmentations"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens both files."""
        super().on_predict_start(trainer, pl_module)
        data, classes = trainer.datamodule, pl_module.model.num_classes
        names = pl_module.class_names or getattr(data, "class_names", None)
        self._classes = list(names or map(str, range(classes)))
        self._palette = palette_of(data, classes)
        self._csv = csv.writer(self.table)
        self._csv.writerow(["file", "mask", "overlay", "error", *self._classes])

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Any],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the pictures and lines of one batch."""
        for file, mask in zip(prediction["files"], prediction["masks"], strict=True):
            if (error := self.note(file)) is not None:
                self.json.write(json.dumps({"file": file, "error": error}, ensure_ascii=False) + "\n")
                self._csv.writerow([file, "", "", error, *[""] * len(self._classes)])
                continue
            name = f"{self.unique_stem(file)}.png"
            paths = [self.paths[0].parent / kind / name for kind in ("masks", "overlays")]
            image = decode_rgb(file)
            mask = torch.nn.functional.interpolate(mask[None, None].float(), image.shape[1:])[0, 0].to(mask.dtype)
            for path, picture in zip(paths, (self._indexed(mask), overlay(image, mask, self._palette)), strict=True):
                with whole(path) as partial:
                    picture.save(partial)
            counts = torch.bincount(mask.flatten().long(), minlength=len(self._classes))
            shares = [round(float(share), 6) for share in counts / mask.numel()]
            named = {name: share for name, share in zip(self._classes, shares, strict=True) if share}
            line = {"file": file, "mask": str(paths[0]), "overlay": str(paths[1]), "shares": named}
            self.json.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._csv.writerow([file, *paths, "", *shares])

    def _indexed(self, mask: Tensor) -> Image.Image:
        """Classes `(Y, X)` as a picture of 8 bits with a palette; of 32 bits without one for more than 256 classes."""
        picture = Image.fromarray(mask.numpy())
        if mask.dtype == torch.uint8:
            picture = picture.convert("P")  # the same numbers
            picture.putpalette(self._palette.flatten().tolist())
        return picture


class SegmentationPictures(Callback):
    """Shows validation images as `val/segmentation`: the image, its true classes, the predicted ones.

    Pixels that do not count are black in the truth.

    Args:
        count: Images.
    """

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self._shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self._shown = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Any],
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps images until there are enough."""
        most = sum(trainer.num_val_batches) / self.count  # batches for each picture, so that they spread over the data
        if not trainer.is_global_zero or trainer.sanity_checking or (most > 1 and batch_idx < len(self._shown) * most):
            return
        left = self.count - len(self._shown)
        for place, found in enumerate(outputs["masks"][: 1 if most > 1 and left else left]):
            height, width = found.shape
            image, truth = batch["images"][place, :, :height, :width], batch["masks"][place, :height, :width]
            self._shown.append((image.float().cpu(), truth.cpu(), found.cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        if not self._shown or not can_show(trainer):
            return
        data = trainer.datamodule
        palette = palette_of(data, pl_module.model.num_classes)
        grid = triples(self._shown, palette, getattr(data, "mean", None), getattr(data, "std", None))
        show_picture(trainer, "val/segmentation", grid)


def palette_of(data: Any, num_classes: int) -> Tensor:
    """Colours `(C, 3)` uint8 of the data, or where it has none those of Pascal VOC without its black."""
    colours = getattr(data, "palette", None)
    return torch.tensor(voc_palette(num_classes) if colours is None else colours, dtype=torch.uint8)


def coloured(mask: Tensor, palette: Tensor) -> Tensor:
    """Classes `(Y, X)` to colours `(3, Y, X)` uint8; what is no class is black."""
    known = mask.long() < len(palette)
    colours = palette[mask.long().where(known, 0)] * known[..., None]  # (Y, X, 3)
    return colours.permute(2, 0, 1)


def overlay(image: Tensor, mask: Tensor, palette: Tensor) -> Image.Image:
    """An image `(3, Y, X)` uint8 with the colours of its classes `(Y, X)` over it."""
    mixed = (1 - _SHARE) * image.float() + _SHARE * coloured(mask, palette).float()
    return Image.fromarray(np.ascontiguousarray(mixed.round().to(torch.uint8).permute(1, 2, 0).numpy()))


def triples(
    shown: Sequence[tuple[Tensor, Tensor, Tensor]],
    palette: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    longest: int = 320,
) -> Tensor:
    """One picture `(3, Y, X)` in [0, 1] with a row for each image: itself, its true classes, the predicted ones.

    Args:
        shown: Images `(3, y, x)`, normalised by `mean` and `std` where these are given; classes `(y, x)`, twice.
        palette: `(C, 3)`.
        mean: Of each channel, of pixels in [0, 1].
        std: Likewise.
        longest: Pixels of the longer side of each picture.
    """
    pictures = []
    for image, truth, found in shown:
        scale = longest / max(image.shape[1:])
        for picture in (denormalised(image, mean, std), coloured(truth, palette) / 255, coloured(found, palette) / 255):
            pixels = [round(side * scale) for side in picture.shape[1:]]
            pictures.append(torch.nn.functional.interpolate(picture[None].float(), pixels)[0])
    most = [max(picture.shape[axis] for picture in pictures) for axis in (1, 2)]
    padded = [
        torch.nn.functional.pad(picture, (0, most[1] - picture.shape[2], 0, most[0] - picture.shape[1]), value=1.0)
        for picture in pictures
    ]
    return make_grid(padded, nrow=3, padding=4, pad_value=1.0)
