"""Writes predictions batch by batch, into a JSON file and a file for people."""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lookupvit.writing import WriteError, refusal, say


class TwoFilesWriter(BasePredictionWriter):
    """Base of what `predict` writes: two files in the order of the data, with exactly one entry for each input.

    They are called `NAME.partial` until everything is written; after an error, what was written stays under that name.

    A child class writes the results of a batch in `write`, to `json` and `table`, and counts the files by `note`.

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
        self.paths = [folder / name for name in self.names]
        self.count, self.failed = 0, []
        self._stems: set[str] = set()
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            # newline="": the csv module ends its lines itself
            self.json, self.table = (_partial(path).open("w", encoding="utf-8", newline="") for path in self.paths)

    def note(self, file: str) -> str | None:
        """Counts a file; returns what is wrong with it, or None."""
        self.count += 1
        error = getattr(file, "error", None)
        if error is not None:
            self.failed.append((str(file), error))
        return error

    def unique_stem(self, file: str) -> str:
        """A name for a file's picture: its own without the ending, and a number after it if that was given already."""
        stem = name = Path(file).stem
        number = 1
        while name in self._stems:
            number += 1
            name = f"{stem}_{number}"
        self._stems.add(name)
        return name

    @abstractmethod
    def write(self, prediction: dict[str, Any]) -> None:
        """Writes what `predict_step` returned for one batch."""

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *others: Any) -> None:
        """Writes one batch."""
        self.write(prediction)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Writes a batch, through to the disk's own buffers: a full disk is noticed here, not at the end."""
        with self._told():
            super().on_predict_batch_end(trainer, pl_module, *args, **kwargs)
            self.json.flush()
            self.table.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes both files, gives them their names, and says where they are and how many inputs could not be read.

        Raises:
            ValueError: If not one of them could.
        """
        with self._told():
            self.close()
            for path in self.paths:
                os.replace(_partial(path), path)
        say(f"{self.count} {self.what}: {self.paths[0]} and {self.paths[1]}")
        if not self.failed:
            return
        file, error = self.failed[0]
        first = error if file in error else f"{file}: {error}"
        if len(self.failed) == self.count:
            raise ValueError(f"none of the {self.count} files could be read ({first}): {self.paths[0]} has all reasons")
        say(
            f"warning: {len(self.failed)} of {self.count} files could not be read and have their error in place of "
            f"{self.what} ({first}{'; ...' if len(self.failed) > 1 else ''})",
            error=True,
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps what was written before an error."""
        with contextlib.suppress(OSError):  # the same full disk again
            self.close()

    def close(self) -> None:
        """Closes what is open."""
        for file in (self.json, self.table):
            if file is not None:
                file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """An error of the disk as one line."""
        try:
            yield
        except OSError as error:
            raise WriteError(refusal(self.paths[0], error)) from error


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
