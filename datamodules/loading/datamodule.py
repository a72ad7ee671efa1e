"""The base of all DataModules: the arguments that they share, the checks of these, and the loaders made from them."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.loading.resumable import ResumableLoader, training_loader
from datamodules.loading.unreadable import read_bad_files
from datamodules.loading.workers import worker_options

# The data sets that a stage of Lightning needs, and the stage that sets up one data set.
SPLITS_OF_STAGE = {None: ("train", "val", "test"), "fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
STAGE_OF_SPLIT = {"train": "fit", "val": "validate"}


def given_arguments(made: Any) -> dict[str, Any]:
    """The arguments of an object's `__init__`, with their defaults; called while the `__init__` of a base runs.

    A checkpoint keeps them, so that it says which data it is of without the file of a configuration.
    """
    frame = sys._getframe(1)
    while (outer := frame.f_back) and outer.f_code.co_name == "__init__" and outer.f_locals.get("self") is made:
        frame = outer
    names, _, further, values = inspect.getargvalues(frame)
    return {name: values[name] for name in names if name != "self"} | dict(values.get(further) or {})


class BaseDataModule(LightningDataModule):
    """A subclass says which samples there are, in `setup`, and makes batches of them.

    Args:
        root: The folder of the data.
        img_size: Pixels, one number or (height, width).
        batch_size: Samples per device in training.
        val_batch_size: Samples per device in evaluation; `None` = `batch_size`.
        num_workers: Loader processes per device; `None` = this machine's cores divided by its devices, at most 16.
        train_split: Name of the training split.
        val_split: Name of the validation split.
        test_split: Name of the test split; `None` = as the class says.
        predict_path: A file, a folder or a glob to predict on.
        exclude: A list of files to leave out, as `lookupvit check-data` writes it.
        persistent_workers: Keep the loader processes between epochs.
        prefetch_factor: Batches that each worker prepares ahead; `None` = torch's default.
        drop_last: Leave out the last, smaller batch in training.

    Raises:
        ValueError: One line that names the option and its limits.
    """

    samples_are = "images"  # for errors

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        num_workers: int | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        predict_path: str | None = None,
        exclude: str | None = None,
        persistent_workers: bool = True,
        prefetch_factor: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = given_arguments(self)
        self.root = Path(root).expanduser()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.batch_size, self.val_batch_size = batch_size, batch_size if val_batch_size is None else val_batch_size
        self.num_workers, self.drop_last = num_workers, drop_last
        self.persistent_workers, self.prefetch_factor = persistent_workers, prefetch_factor
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.predict_path, self.exclude = predict_path, exclude
        self._datasets: dict[str, Dataset] = {}
        if len(self.img_size) != 2 or min(self.img_size) < 1:
            raise ValueError(f"data.img_size needs one positive number or (height, width), got {self.img_size}")
        self._check_at_least(1, "batch_size", "val_batch_size")
        if (num_workers or 0) < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}; 0 loads in this process")

    @property
    def _has_no_part_in_prediction(self) -> bool:
        """Whether the Trainer predicts on loaders that it was handed, and this DataModule is there from before."""
        predicting = self.trainer is not None and self.trainer.state.fn == "predict"
        return predicting and self.trainer.predict_loop._data_source.instance is not self

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def excluded(self) -> set[str]:
        """Absolute paths of the files that `exclude` lists."""
        return set() if self.exclude is None else read_bad_files(self.exclude, self.root)

    def dataset(self, name: str) -> Dataset:
        """The data set of `train`, `val`, `test` or `predict`, set up when it is first asked for."""
        if name not in self._datasets:
            self.setup(STAGE_OF_SPLIT.get(name, name))
        return self._datasets[name]

    @property
    def _worker_options(self) -> dict[str, Any]:
        return worker_options(self.num_workers, self.trainer, self.persistent_workers, self.prefetch_factor)

    def _training_loader(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> ResumableLoader:
        return training_loader(
            dataset,
            self.batch_size,
            collate,
            trainer=self.trainer,
            num_workers=self.num_workers,
            drop_last=self.drop_last,
            what=self.samples_are,
            persistent_workers=self.persistent_workers,
            prefetch_factor=self.prefetch_factor,
        )

    def _evaluation_loader(
        self, dataset: Dataset, collate: Callable[[list[Any]], Any], batch_size: int | None = None
    ) -> DataLoader:
        batch_size = batch_size or self.val_batch_size
        return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, **self._worker_options)
