"""Captions as files (`predict`), and beside their images in the loggers (`fit`)."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from lookupvit.callbacks.answers.writer import TwoFilesWriter
from lookupvit.callbacks.pictures import denormalised
from lookupvit.callbacks.show import can_show, show_figure, show_table


class CaptionWriter(TwoFilesWriter):
    """Writes `captions.json` and `captions.txt`, in the order of the data, as they come.

    The JSON is COCO's result format, `[{"image_id": int, "caption": str}, ...]`, the best caption of each image; the
    text names each file with all of its captions and, where there are several, their scores. An image that could not be
    read has its entry, too: `{"image_id": int, "caption": "", "error": str}`.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    names, what = ("captions.json", "captions.txt"), "captions"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens both files."""
        super().on_predict_start(trainer, pl_module)
        self.json.write("[")

    def write(self, prediction: dict[str, Any]) -> None:
        """Writes the captions of one batch."""
        rows = zip(prediction["files"], prediction["image_ids"], prediction["captions"], strict=True)
        for file, number, captions in rows:
            self.json.write(",\n " if self.count else "\n ")
            if (error := self.note(file)) is not None:
                self.json.write(json.dumps({"image_id": number, "caption": "", "error": error}, ensure_ascii=False))
                self.table.write(f"{file}\n    error: {error}\n")
                continue
            self.json.write(json.dumps({"image_id": number, "caption": captions[0][0]}, ensure_ascii=False))
            scores = [f"{score:8.3f}  " if len(captions) > 1 else "" for _, score in captions]
            lines = [f"    {score}{text}" for score, (text, _) in zip(scores, captions, strict=True)]
            self.table.write("\n".join([file, *lines]) + "\n")

    def close(self) -> None:
        """Ends the list, too."""
        if self.json is not None and not self.json.closed:
            self.json.write("\n]\n")
        super().close()


class CaptionPictures(Callback):
    """Shows the first validation images with their generated and reference captions, as `val/captions`.

    Loggers that can get a picture and, to search and copy, the same as a table.

    Args:
        count: Images.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self._shown: list[tuple[torch.Tensor, str, list[str]]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self._shown = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, list[str]],
        batch: tuple,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps images until there are enough."""
        if trainer.is_global_zero and not trainer.sanity_checking and len(self._shown) < self.count:
            images, _, references = batch
            shown = zip(images.detach().float().cpu(), outputs["captions"], references, strict=True)
            self._shown += list(shown)[: self.count - len(self._shown)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes picture and text."""
        if not self._shown or not can_show(trainer):
            return
        data = trainer.datamodule
        figure = caption_figure(self._shown, getattr(data, "mean", None), getattr(data, "std", None))
        rows = [(text, "<br>".join(references)) for _, text, references in self._shown]
        show_figure(trainer, "val/captions", figure)
        show_table(trainer, "val/captions", ("generated", "references"), rows)


def caption_figure(
    shown: Sequence[tuple[torch.Tensor, str, list[str]]],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    references: int = 2,
) -> Figure:
    """Images with their captions beside them, two per row.

    Args:
        shown: Images `(3, H, W)`, normalised by `mean` and `std` where these are given; generated caption; references.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        references: How many of them to show at most.
    """
    rows = (len(shown) + 1) // 2
    figure = Figure(figsize=(10, 1.9 * rows), dpi=100)
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=(1, 1.6) * 2).flatten()
    for axes in grid:
        axes.axis("off")
    for place, (image, text, captions) in enumerate(shown):
        picture, words = grid[2 * place], grid[2 * place + 1]
        picture.imshow(denormalised(image, mean, std).permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
        words.text(0, 1, _lines(text, 34, 4), va="top", fontsize=9, weight="bold", parse_math=False)
        told = "\n".join(_lines(caption, 42, 2) for caption in captions[:references])
        words.text(0, 0, told, va="bottom", fontsize=7.5, color="#555555", parse_math=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.03, top=0.97, wspace=0.06, hspace=0.12)
    return figure


def _lines(text: str, width: int, most: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=most, placeholder=" ...") or ["(nothing)"])
