"""Benchmarks of semantic segmentation with one PNG of numbers per image: ADE20K, Cityscapes, Pascal VOC 2012."""

import os
from pathlib import Path
from typing import Any

from datamodules.dense.mask_folder import files_by_stem
from datamodules.dense.masks import ClassMap, palette_of
from datamodules.dense.segmentation import SegmentationDataModule
from datamodules.images.folder import EXTENSIONS
from datamodules.loading.files import what_is_there
from datamodules.loading.untrusted import inside

# Cityscapes: name, number in *_labelIds.png, colour; the nineteen classes that are scored, in their order.
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_CITYSCAPES_NUMBERS = 34  # 0 to 33; the licence plates' -1 is 255 in a PNG
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class ADE20KDataModule(SegmentationDataModule):
    """ADE20K's scene parsing release (ADEChallengeData2016): 150 classes, 20,210 training and 2,000 validation images.

    `images/training/*.jpg`, `annotations/training/*.png`, likewise `validation`, and `objectInfo150.txt`. In the masks
    0 is unlabelled, and k is class k - 1.

    Args:
        root: The folder of the data.
        train_split: Name of the training split's folder.
        val_split: Name of the validation split's folder.
        kwargs: As for `SegmentationDataModule`.
    """

    num_classes = 150
    test_is_public = False

    def __init__(self, root: str, train_split: str = "training", val_split: str = "validation", **kwargs: Any) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)

    @property
    def class_names(self) -> list[str]:
        """The first name of each line of `objectInfo150.txt`."""
        path = self.root / "objectInfo150.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"no {str(path)!r}: {what_is_there(self.root)}; it is part of the release ADEChallengeData2016"
            )
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        if len(names) != self.num_classes:
            raise ValueError(
                f"{str(path)!r} names {len(names)} classes, the release has {self.num_classes}: unpack it again"
            )
        return names

    def _class_map(self) -> ClassMap:
        return ClassMap(150, {number: number - 1 for number in range(1, 151)}, [0, *self.unlabelled])

    def _has(self, split: str) -> bool:
        return (self.root / "images" / split).is_dir()

    def _samples(self, split: str) -> list[tuple[str, str]]:
        masks = self.root / "annotations" / split
        images = files_by_stem(self.root / "images" / split, EXTENSIONS)
        return [(path, os.path.join(masks, stem + ".png")) for stem, path in images.items()]


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes with fine masks: 19 classes, 2,975 training and 500 validation images of 2048 x 1024.

    `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`. The masks of the test
    split are withheld: test is the validation split.

    Args:
        root: The folder of the data.
        kwargs: As for `SegmentationDataModule`.
    """

    class_names = [name for name, _, _ in _CITYSCAPES]
    test_is_public = False

    def _known_palette(self) -> list[tuple[int, int, int]]:
        return [colour for _, _, colour in _CITYSCAPES]

    def _class_map(self) -> ClassMap:
        numbers = {number: label for label, (_, number, _) in enumerate(_CITYSCAPES)}
        ignored = [number for number in range(_CITYSCAPES_NUMBERS) if number not in numbers]
        return ClassMap(len(_CITYSCAPES), numbers, [*ignored, *self.unlabelled])

    def _has(self, split: str) -> bool:
        return (self.root / "leftImg8bit" / split).is_dir()

    def _samples(self, split: str) -> list[tuple[str, str]]:
        images = files_by_stem(self.root / "leftImg8bit" / split, EXTENSIONS, "_leftImg8bit")
        masks = self.root / "gtFine" / split
        return [(path, os.path.join(masks, stem + "_gtFine_labelIds.png")) for stem, path in images.items()]


class VOCSegmentationDataModule(SegmentationDataModule):
    """Pascal VOC 2012, with the augmented training list: 21 classes, 10,582 training and 1,449 validation images.

    `JPEGImages/`, `ImageSets/Segmentation/SPLIT.txt`, and the masks in `SegmentationClass/`, for a split whose name
    has `aug` in `SegmentationClassAug/`. A line of a list is an image's number, or the paths of an image and its mask.

    Args:
        root: `VOC2012`, or a folder that holds it or `VOCdevkit/VOC2012`.
        train_split: `trainaug`, or `train` for the 1,464 images of the release.
        val_split: Name of the validation list.
        kwargs: As for `SegmentationDataModule`.
    """

    class_names = list(_VOC)
    test_is_public = False

    def __init__(self, root: str, train_split: str = "trainaug", val_split: str = "val", **kwargs: Any) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)
        places = (self.root / "VOCdevkit" / "VOC2012", self.root / "VOC2012")
        self.home = next((place for place in places if place.is_dir()), self.root)

    def _known_palette(self) -> list[tuple[int, int, int]]:
        return [(0, 0, 0), *palette_of(len(_VOC) - 1)]

    def _list(self, split: str) -> Path:
        return self.home / "ImageSets" / "Segmentation" / f"{split}.txt"

    def _has(self, split: str) -> bool:
        return self._list(split).is_file()

    def _samples(self, split: str) -> list[tuple[str, str]]:
        path = self._list(split)
        if not path.is_file():
            raise FileNotFoundError(
                f"no list {str(path)!r}: {what_is_there(path.parent)}; for the augmented training set get trainaug.txt "
                "and SegmentationClassAug, or set data.train_split=train for the release's own"
            )
        masks = "SegmentationClassAug" if "aug" in split else "SegmentationClass"
        samples = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = [inside(word.lstrip("/"), repr(str(path))) for word in line.split()]
            if len(words) == 1:
                words = [f"JPEGImages/{words[0]}.jpg", f"{masks}/{words[0]}.png"]
            if words:
                samples.append((str(self.home / words[0]), str(self.home / words[1])))
        return samples
