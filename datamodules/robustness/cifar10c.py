"""CIFAR-10-C: the published arrays where they are on disk, else made from the test images, once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.cifar10 import CIFAR10DataModule
from datamodules.images.folder import ImageFolder
from datamodules.loading.untrusted import check_may_write
from datamodules.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from datamodules.robustness.sets import SeveralTestSets, TestSet

_BATCH = 500  # images corrupted at a time


class CIFAR10CDataModule(SeveralTestSets, CIFAR10DataModule):
    """CIFAR-10's test images, clean and under 15 corruptions x 5 severities, in one test.

    The folder `corrupted` has the layout of the published archive: `labels.npy` and one `CORRUPTION.npy` each,
    uint8 `(5 n, 32, 32, 3)`, the five severities one after the other. What is missing is made (see
    `datamodules.robustness.corruptions` for where it differs from the published) and kept there: 154 MB for each
    corruption of all 10,000 images.

    Args:
        root: CIFAR-10 as JPEGs in class folders, as for `CIFAR10DataModule`.
        corrupted: Folder of the arrays.
        corruptions: Names; None: all 15.
        severities: Severities from 1 to 5.
        limit: Make and test about so many images, evenly spread over the classes; None: all. Use another `corrupted`
            for each number.
        kwargs: As for `CIFAR10DataModule`.

    Raises:
        ValueError: One line, for names that do not exist, or arrays that do not belong to these images.
    """

    def __init__(
        self,
        root: str = "data/cifar10",
        corrupted: str = "data/cifar10-c",
        corruptions: list[str] | None = None,
        severities: tuple[int, ...] = SEVERITIES,
        limit: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.corrupted, self.limit = Path(corrupted).expanduser(), limit
        self.corruptions, self.severities = list(CORRUPTIONS if corruptions is None else corruptions), tuple(severities)
        if unknown := [name for name in self.corruptions if name not in CORRUPTIONS]:
            raise ValueError(f"data.corruptions: there is no {unknown[0]!r}; choose of {', '.join(CORRUPTIONS)}")
        if unknown := [severity for severity in self.severities if severity not in SEVERITIES]:
            raise ValueError(f"data.severities: there is no {unknown[0]}; choose of 1 to 5")

    def prepare_data(self) -> None:
        """Unpacks CIFAR-10 and makes the arrays that are missing, with a progress bar."""
        super().prepare_data()
        missing = [name for name in self.corruptions if not (self.corrupted / f"{name}.npy").is_file()]
        if not missing:
            return
        check_may_write(self, "corrupted")
        images, labels = self._pixels()
        self.corrupted.mkdir(parents=True, exist_ok=True)
        _save(self.corrupted / "labels.npy", np.tile(labels.numpy().astype(np.uint8), len(SEVERITIES)))
        for name in track(missing, description=f"corrupting {len(images)} images"):
            _save(self.corrupted / f"{name}.npy", np.concatenate(list(_severities(images, name))))

    def _find_sets(self) -> Iterator[tuple[TestSet, Dataset]]:
        images, labels = self._pixels()
        yield TestSet("cifar10"), _Arrays(images, labels)
        for name in self.corruptions:
            array, classes = self._open(name, len(images))
            for severity in self.severities:
                part = array[(severity - 1) * len(images) : severity * len(images)]
                yield TestSet("cifar10-c", name, severity), _Arrays(part, classes)

    def _pixels(self) -> tuple[Tensor, Tensor]:
        """Test images uint8 `(n, 3, 32, 32)`, and their classes `(n,)`."""
        data = ImageFolder(self.root / (self.test_split or "test"), cache=True)
        images, labels = data.images, torch.tensor(data.targets)
        if self.limit is not None and self.limit < len(images):
            chosen = torch.arange(self.limit) * len(images) // self.limit
            images, labels = images[chosen], labels[chosen]
        return images, labels

    def _open(self, name: str, count: int) -> tuple[np.ndarray, Tensor]:
        """Images `(5 n, 32, 32, 3)` of a corruption, and the classes `(n,)` in the order of that file."""
        path = self.corrupted / f"{name}.npy"
        for file in (path, self.corrupted / "labels.npy"):
            if not file.is_file():
                raise FileNotFoundError(
                    f"no {str(file)!r}: lookupvit test makes it, or fetch CIFAR-10-C into that folder"
                )
        images, labels = np.load(path, mmap_mode="r"), np.load(self.corrupted / "labels.npy")
        if len(images) != len(SEVERITIES) * count or len(labels) != len(images):
            raise ValueError(
                f"{str(path)!r} holds {len(images)} images and {len(labels)} labels, but {count} test images make "
                f"{len(SEVERITIES) * count}: remove that folder, or set data.corrupted to another one"
            )
        return images, torch.from_numpy(labels[:count].astype(np.int64))


class _Arrays(Dataset):
    """Images uint8 `(n, 3, H, W)`, or `(n, H, W, 3)` of a file, and their classes."""

    def __init__(self, images: Tensor | np.ndarray, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if not isinstance(image, Tensor):
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return image, int(self.labels[index])


def _severities(images: Tensor, name: str) -> Iterator[np.ndarray]:
    for severity in SEVERITIES:
        for start in range(0, len(images), _BATCH):
            some = images[start : start + _BATCH]
            made = corrupt(some, name, severity, range(start, start + len(some)))
            yield made.permute(0, 2, 3, 1).numpy()  # (B, 3, H, W) -> (B, H, W, 3)


def _save(path: Path, array: np.ndarray) -> None:
    """Writes an array, which gets its name once it is whole."""
    with open(f"{path}.part", "wb") as file:
        np.save(file, array)
    os.replace(f"{path}.part", path)
