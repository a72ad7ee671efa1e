"""Predictions as JSON lines and CSV."""

import csv
import json
from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lookupvit.callbacks.answers.writer import TwoFilesWriter
from lookupvit.grid import size_name
from lookupvit.writing import say


class PredictionWriter(TwoFilesWriter):
    """Writes `predictions.jsonl` and `predictions.csv`, a line per file in the order of the data, as they come.

    A line of JSON is `{"file": str, "predictions": [{"class": str, "index": int, "probability": float}, ...]}`, most
    likely class first; the CSV has the columns `file, class_1, probability_1, class_2, ..., error`. Of a cascade both
    also have the `compressed_size` that the file ended at, and the number of files at each is printed.

    A file that could not be read has its line, too: `"predictions": []` and `"error": str` in the JSON, and in the
    CSV nothing but `file` and `error`.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    names, what = ("predictions.jsonl", "predictions.csv"), "predictions"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens both files."""
        super().on_predict_start(trainer, pl_module)
        self._csv = csv.writer(self.table)
        self._classes = pl_module.class_names or getattr(trainer.datamodule, "class_names", None)
        self._ended: Counter[str] = Counter()

    def write(self, prediction: dict[str, Any]) -> None:
        """Writes the predictions of one batch."""
        sizes = [size_name(size) for size in prediction.get("sizes", ())]
        if not self.count:
            columns = range(1, prediction["classes"].shape[1] + 1)
            names = [f"{what}_{k}" for k in columns for what in ("class", "probability")]
            self._columns = ["file", *names, *(["compressed_size"] if sizes else []), "error"]
            self._csv.writerow(self._columns)
        rows = zip(
            prediction["files"], prediction["classes"].tolist(), prediction["probabilities"].tolist(), strict=True
        )
        for place, (file, classes, probabilities) in enumerate(rows):
            if (error := self.note(file)) is not None:
                self.json.write(
                    json.dumps({"file": file, "predictions": [], "error": error}, ensure_ascii=False) + "\n"
                )
                self._csv.writerow([file, *[""] * (len(self._columns) - 2), error])
                continue
            ended = sizes[place : place + 1]  # nothing, without a cascade
            top = [
                {"class": self._name(index), "index": index, "probability": round(probability, 6)}
                for index, probability in zip(classes, probabilities, strict=True)
            ]
            line = {"file": file, "predictions": top} | ({"compressed_size": ended[0]} if ended else {})
            self.json.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._csv.writerow([file, *(item[key] for item in top for key in ("class", "probability")), *ended, ""])
            self._ended.update(ended)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes both files and says where they are, and where a cascade ended."""
        super().on_predict_end(trainer, pl_module)
        if self._ended:
            shares = ", ".join(f"{count} at {size}" for size, count in self._ended.most_common())
            say(f"the cascade answered {shares}")

    def _name(self, index: int) -> str:
        return self._classes[index] if self._classes else str(index)
