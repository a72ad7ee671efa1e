"""Detections as files (`predict`), and beside what was to be found in the loggers (`fit`)."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.io import encode_png
from torchvision.transforms.v2.functional import resize

from datamodules.images.decode import decode_rgb
from lookupvit.callbacks.answers.writer import TwoFilesWriter
from lookupvit.callbacks.pictures import as_bytes, draw_objects, side_by_side
from lookupvit.callbacks.show import can_show, show_picture
from lookupvit.writing import whole

_COLUMNS = ("file", "image_id", "height", "width", "objects", "best_class", "best_score", "overlay", "error")


class DetectionWriter(TwoFilesWriter):
    """Writes `detections.json`, `detections.csv` and a picture of each input in `overlays/`, as they come.

    The JSON is COCO's result format, for evaluation servers and tools:
    `[{"image_id": int, "category_id": int, "bbox": [x, y, width, height], "score": float, "segmentation": RLE}, ...]`,
    in pixels of the file, with COCO's compressed run lengths where there are masks. The CSV has a row for each input,
    in the order of the data, with the columns `file, image_id, height, width, objects, best_class, best_score, overlay,
    error`; an input that could not be read has its row with the error, and nothing else.

    Args:
        folder: Where to write; None is the run's output folder.
        overlays: Whether to write the pictures.
        score: Least score of an object in the pictures and in the count of `objects`; the JSON has all.
    """

    names, what = ("detections.json", "detections.csv"), "detections"

    def __init__(self, folder: str | None = None, overlays: bool = True, score: float = 0.5) -> None:
        super().__init__(folder)
        self.overlays, self.score = overlays, score

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens both files."""
        super().on_predict_start(trainer, pl_module)
        self._csv = csv.DictWriter(self.table, _COLUMNS)
        self._csv.writeheader()
        self.json.write("[")
        self._first, self._ids = True, set()
        data = trainer.datamodule
        self._classes = pl_module.class_names or getattr(data, "class_names", None)
        self._categories = pl_module.category_ids or getattr(data, "category_ids", None)

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
        """Writes the detections of one batch."""
        for file, found, size in zip(prediction["files"], prediction["detections"], prediction["sizes"], strict=True):
            number = self._number(str(file))
            row: dict[str, Any] = {"file": str(file), "image_id": number}
            if (error := self.note(file)) is not None:
                self._csv.writerow({**row, "error": error})
                continue
            found = {key: value.cpu() for key, value in found.items()}
            for entry in coco_results(found, number, self._categories):
                self.json.write(("\n " if self._first else ",\n ") + json.dumps(entry))
                self._first = False
            row |= dict(zip(("height", "width"), size, strict=True))
            shown = {key: value[found["scores"] >= self.score] for key, value in found.items()}
            row["objects"] = len(shown["scores"])
            if len(found["scores"]):
                label = int(found["labels"][0])
                row["best_class"] = self._classes[label - 1] if self._classes else label
                row["best_score"] = round(float(found["scores"][0]), 6)
            if self.overlays:
                picture = self.paths[0].parent / "overlays" / f"{self.unique_stem(file)}.png"
                drawn = encode_png(draw_objects(decode_rgb(str(file)), shown, self._classes))
                with whole(picture) as partial:
                    partial.write_bytes(drawn.numpy().tobytes())
                row["overlay"] = f"{picture.parent.name}/{picture.name}"
            self._csv.writerow(row)

    def close(self) -> None:
        """Ends the list, too."""
        if self.json is not None and not self.json.closed:
            self.json.write("\n]\n")
        super().close()

    def _number(self, file: str) -> int:
        """The number that ends a file's name, as in COCO; another one where there is none or it was given already."""
        ending = re.search(r"(\d{1,15})$", Path(file).stem, re.ASCII)
        number = int(ending[1]) if ending else self.count + 1
        while number in self._ids:
            number += 1
        self._ids.add(number)
        return number


def coco_results(found: dict[str, Tensor], image_id: int, category_ids: Sequence[int] | None) -> list[dict[str, Any]]:
    """The detections of an image as entries of COCO's result format.

    Args:
        found: "boxes" `(n, 4)` (x1, y1, x2, y2), "scores", "labels" `(n,)` and perhaps "masks" `(n, Y, X)`, on the CPU.
        image_id: Of the image.
        category_ids: Number of each class in COCO's file; None: the labels.
    """
    entries = []
    for place, (label, score) in enumerate(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)):
        x1, y1, x2, y2 = found["boxes"][place].tolist()
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        category = label if category_ids is None else category_ids[label - 1]
        entry = {"image_id": image_id, "category_id": category, "bbox": box, "score": round(score, 6)}
        if "masks" in found:
            lengths = rle.encode(np.asfortranarray(found["masks"][place].numpy().astype(np.uint8)))
            entry["segmentation"] = {"size": list(lengths["size"]), "counts": lengths["counts"].decode("ascii")}
        entries.append(entry)
    return entries


class DetectionPictures(Callback):
    """Shows the first validation images with their objects at the left and the detections at the right.

    The loggers get one picture, `val/detections`, per validation.

    Args:
        count: Images.
        score: Least score of a detection that is shown.
    """

    def __init__(self, count: int = 8, score: float = 0.5) -> None:
        self.count, self.score = count, score
        self._shown: list[tuple[Tensor, Tensor]] = []

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
        """Draws images until there are enough."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        data = trainer.datamodule
        names = getattr(data, "class_names", None)
        left = self.count - len(self._shown)
        shown = zip(batch["images"], outputs["targets"], outputs["detections"], strict=True)
        for image, target, found in list(shown)[:left]:
            picture = as_bytes(image, getattr(data, "mean", None), getattr(data, "std", None))
            picture = resize(picture, [int(side) for side in target.get("orig_size", image.shape[1:])])
            sure = {key: value[found["scores"] >= self.score] for key, value in found.items()}
            self._shown.append(tuple(draw_objects(picture, objects, names) for objects in (target, sure)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        if self._shown and can_show(trainer):
            show_picture(trainer, "val/detections", side_by_side(self._shown) / 255)
        self._shown = []
