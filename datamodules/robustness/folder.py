"""The test images of any tree of class folders: clean, under ImageNet-C's corruptions, and under simple shifts."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.folder import ImageFolder, LabelledImages
from datamodules.images.imagenet import ImageFolderDataModule
from datamodules.images.names import check_same_classes
from datamodules.robustness.corruptions import CORRUPTIONS
from datamodules.robustness.imagenet_c import LEAST_SIDE, SEVERITIES, corrupt_image, prepare
from datamodules.robustness.sets import ResizedTestSets, TestSet
from datamodules.robustness.shifts import SHIFTS, parse_shift, shift_image


class CorruptedFolderDataModule(ResizedTestSets, ImageFolderDataModule):
    """The test images clean, under 15 corruptions x 5 severities, and shifted, in one test.

    The images are those of `test_split`; without one, of `test/` where the tree has it, else of `val_split`. Each is
    resized and cropped as in any evaluation, then corrupted or shifted, then normalised. Its seed comes from
    `CLASS/FILE`, so that an image has the same pixels for every model, in every run and in every choice of images.
    Nothing is stored.

    Args:
        root: The folder that holds the splits.
        corruptions: Names; None: all 15; `[]`: none.
        severities: Of 1 to 5.
        shifts: As `datamodules.robustness.shifts` names them; None: `SHIFTS`; `[]`: none.
        images_per_class: So many of each class, evenly spread over its sorted files; None: all.
        patch_size: Pixels of the patches that `occlusion_*` leaves out (they become the mean colour, `mean`).
        kwargs: As for `ImageFolderDataModule`.

    Raises:
        ValueError: One line, for names that do not exist, images too small to corrupt, or patches that do not fit.
        ModuleNotFoundError: One line, if the extra `robustness` is not installed.
    """

    def __init__(
        self,
        root: str,
        corruptions: list[str] | None = None,
        severities: tuple[int, ...] = SEVERITIES,
        shifts: list[str] | None = None,
        images_per_class: int | None = None,
        patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.corruptions, self.severities = list(CORRUPTIONS if corruptions is None else corruptions), tuple(severities)
        self.shifts, self.patch_size = list(SHIFTS if shifts is None else shifts), patch_size
        self.images_per_class = images_per_class
        if unknown := [name for name in self.corruptions if name not in CORRUPTIONS]:
            raise ValueError(f"data.corruptions: there is no {unknown[0]!r}; choose of {', '.join(CORRUPTIONS)}")
        if unknown := [severity for severity in self.severities if severity not in SEVERITIES]:
            raise ValueError(f"data.severities: there is no {unknown[0]}; choose of 1 to 5")
        self._check_at_least(1, "patch_size", *(["images_per_class"] if images_per_class is not None else []))
        if self.corruptions and min(self.img_size) < LEAST_SIDE:
            raise ValueError(f"data.img_size: ImageNet-C's corruptions need {LEAST_SIDE} pixels, got {self.img_size}")
        blank = torch.zeros(3, *self.img_size, dtype=torch.uint8)
        for shift in self.shifts:
            if parse_shift(shift)[1]:  # what it cuts the image into must fit
                shift_image(blank, shift, 0, patch_size)

    def _find_sets(self) -> Iterator[tuple[TestSet, Dataset]]:
        if self.corruptions:
            prepare()
        self._check_classes()
        samples = self._samples()
        yield TestSet("clean"), self._changed(samples)
        for name in self.corruptions:
            for severity in self.severities:
                change = partial(corrupt_image, kind=name, severity=severity)
                yield TestSet("corrupted", name, severity), self._changed(samples, change)
        colour = (255 * torch.tensor(self.mean)).round().to(torch.uint8)
        for name in self.shifts:
            change = partial(shift_image, kind=name, patch_size=self.patch_size, colour=colour)
            yield TestSet(name), self._changed(samples, change)

    def _samples(self) -> list[tuple[str, int]]:
        """Files and classes of the images to test."""
        split = self.test_split or ("test" if (self.root / "test").is_dir() else self.val_split)
        folder = ImageFolder(self.root / split, None, self.skip_corrupt, exclude=self.excluded)
        check_same_classes(folder.classes, self.classes, self.root / split, self.root / self.train_split)
        wanted = self.images_per_class
        if wanted is None:
            return list(folder.samples)
        by_class: dict[int, list[tuple[str, int]]] = {}
        for sample in folder.samples:
            by_class.setdefault(sample[1], []).append(sample)
        return [
            own[i * len(own) // min(wanted, len(own))]
            for own in by_class.values()
            for i in range(min(wanted, len(own)))
        ]

    def _changed(self, samples: list[tuple[str, int]], change: Callable[..., Tensor] | None = None) -> LabelledImages:
        return _Changed(samples, self.pipeline(False).sample, change, self.skip_corrupt)


class _Changed(LabelledImages):
    """Images and classes, each image changed after its transform by a function of (image, seed)."""

    def __init__(
        self,
        samples: list[tuple[str, int]],
        transform: Callable[[Tensor], Tensor],
        change: Callable[..., Tensor] | None,
        skip_corrupt: bool,
    ) -> None:
        super().__init__(samples, transform, skip_corrupt)
        self.change = change

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        sample = super().__getitem__(index)
        if sample is None or self.change is None:
            return sample
        return self.change(sample[0], seed=seed_of(self.samples[index][0])), sample[1]


def seed_of(path: str) -> int:
    """The seed of an image: of its file's name and its folder's, wherever the tree lies."""
    return crc32("/".join(Path(path).parts[-2:]).encode())
