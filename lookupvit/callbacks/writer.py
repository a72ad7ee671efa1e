"""Writes predictions as they come, into a JSON file and one that people read."""

from pathlib import Path
from typing import TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console


class TwoFilesWriter(BasePredictionWriter):
    """Base of what `predict` writes: two files in the order of the data, kept as far as they came after an error.

    A child class writes batches in `write_on_batch_end`, to `json` and `table`, and counts them in `count`.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    names: tuple[str, str]  # of both files
    what: str  # they hold, for the last line

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.json: TextIO | None = None
        self.table: TextIO | None = None

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
        # newline="": the csv module ends its lines itself
        self.json, self.table = ((folder / name).open("w", encoding="utf-8", newline="") for name in self.names)
        self.count = 0

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes both files and says where they are."""
        self.close()
        Console().print(f"{self.count} {self.what}: {self.json.name} and {self.table.name}", soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was written before an error."""
        self.close()

    def close(self) -> None:
        """Closes what is open."""
        for file in (self.json, self.table):
            if file is not None:
                file.close()
