"""Predictions as JSON lines and CSV."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console

from lookupvit.model.grid import size_name


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.jsonl`` and ``predictions.csv``, a line a file in the order of the data, as they come.

    A line of JSON is ``{"file": str, "predictions": [{"class": str, "index": int, "probability": float}, ...]}``, most
    likely class first; the CSV has the columns ``file, class_1, probability_1, class_2, ...``. Of a cascade both also
    have the ``compressed_size`` that the file ended at, and the number of files at each is printed.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses several processes, which would write over each other.

        Raises:
            ValueError: If the prediction runs in more than one process.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and trainer.world_size > 1:
            raise ValueError(
                f"predict runs on one device, not {trainer.world_size}: add --trainer.devices 1 --trainer.num_nodes 1"
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens both files."""
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.json_path, self.csv_path = folder / "predictions.jsonl", folder / "predictions.csv"
        self._json = self.json_path.open("w", encoding="utf-8")
        self._csv_file = self.csv_path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._csv_file)
        self._names = pl_module.class_names or getattr(trainer.datamodule, "class_names", None)
        self._count = 0
        self._ended: Counter[str] = Counter()

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
        """Writes the predictions of one batch."""
        sizes = [size_name(size) for size in prediction.get("sizes", ())]
        if not self._count:
            columns = range(1, prediction["classes"].shape[1] + 1)
            names = [f"{what}_{k}" for k in columns for what in ("class", "probability")]
            self._csv.writerow(["file", *names, *(["compressed_size"] if sizes else [])])
        rows = zip(
            prediction["files"], prediction["classes"].tolist(), prediction["probabilities"].tolist(), strict=True
        )
        for place, (file, classes, probabilities) in enumerate(rows):
            ended = sizes[place : place + 1]  # nothing, without a cascade
            top = [
                {"class": self._name(index), "index": index, "probability": round(probability, 6)}
                for index, probability in zip(classes, probabilities, strict=True)
            ]
            line = {"file": file, "predictions": top} | ({"compressed_size": ended[0]} if ended else {})
            self._json.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._csv.writerow([file, *(item[key] for item in top for key in ("class", "probability")), *ended])
            self._count += 1
            self._ended.update(ended)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes both files and says where they are."""
        self._close()
        Console().print(f"{self._count} predictions: {self.json_path} and {self.csv_path}", soft_wrap=True)
        if self._ended:
            shares = ", ".join(f"{count} at {size}" for size, count in self._ended.most_common())
            Console().print(f"the cascade answered {shares}", soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was written before an error."""
        self._close()

    def _close(self) -> None:
        for file in (getattr(self, "_json", None), getattr(self, "_csv_file", None)):
            if file is not None:
                file.close()

    def _name(self, index: int) -> str:
        return self._names[index] if self._names else str(index)
