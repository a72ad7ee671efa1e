"""Boxes and outlines in text files, as YOLO has them."""

import os
from pathlib import Path
from typing import Any

import yaml

from datamodules.dense.detection import DetectionDataModule
from datamodules.dense.index import Instances, add_object
from datamodules.dense.mask_folder import files_by_stem, read_class_names
from datamodules.images.folder import EXTENSIONS
from datamodules.loading.files import what_is_there


class YOLODataModule(DetectionDataModule):
    """`images/SPLIT/*.jpg`, `labels/SPLIT/*.txt`, and the names of the classes in `data.yaml` or `classes.txt`.

    A line of a text is an object: `CLASS X Y WIDTH HEIGHT`, a box by its centre, or `CLASS X Y X Y X Y ...`, an
    outline; all are parts of the image's width and height, and classes count from 0. An image without a text, or with
    an empty one, has no objects. Without `test_split`, the test images are those of `images/test` where that is, else
    the validation images.

    Args:
        root: The folder of the data.
        masks: `true` where every object has an outline.
        num_classes: Checked against the names; `None` = as many as there are.
        kwargs: As for `DetectionDataModule`.
    """

    def __init__(self, root: str, masks: bool = False, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(root, masks=masks, **kwargs)
        self._num_classes = num_classes

    @property
    def class_names(self) -> list[str]:
        """`names` of `data.yaml`, else the lines of `classes.txt`."""
        path = self.root / "data.yaml"
        if not path.is_file():
            return read_class_names(self.root / "classes.txt")
        try:
            names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
            if isinstance(names, dict):
                names = [names[number] for number in range(len(names))]
            if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
                raise TypeError("a list of names")
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{str(path)!r} has no names of classes (names: [cat, dog]): {reason}") from None
        return [str(name) for name in names]

    @property
    def category_ids(self) -> list[int]:
        """Numbers of the classes in the text files."""
        return list(range(self.num_classes))

    def _check_classes(self) -> None:
        if self._num_classes not in (None, self.num_classes):
            raise ValueError(
                f"data.num_classes={self._num_classes}, but {str(self.root)!r} names {self.num_classes} classes: set "
                "it to null to count them"
            )

    def _has(self, split: str) -> bool:
        return (self.root / "images" / split).is_dir()

    def _source(self, split: str) -> Path:
        return self.root / "labels" / split

    def _samples(self, split: str) -> list[tuple[str, Instances]]:
        images = files_by_stem(self.root / "images" / split, EXTENSIONS)
        folder, classes = self._source(split), self.num_classes
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}: {what_is_there(folder.parent)}; put the texts there")
        texts = files_by_stem(folder, (".txt",)) if any(folder.rglob("*.txt")) else {}
        if strange := sorted(stem for stem in texts if stem not in images and os.path.basename(stem) != "classes"):
            raise ValueError(
                f"{len(strange)} texts in {str(folder)!r} have no image, such as {texts[strange[0]]!r}: add the "
                f"image to {str(self.root / 'images' / split)!r}, or remove the text"
            )
        return [
            (path, read_text(path, texts.get(stem), number, classes))
            for number, (stem, path) in enumerate(images.items())
        ]


def read_text(path: str, text: str | None, image_id: int, num_classes: int) -> Instances:
    """The objects of one image; lines that are malformed, or of an unknown class, are its errors.

    Args:
        path: Of the image.
        text: Path of its text, or None.
        image_id: A number for it.
        num_classes: For the check of the class numbers.
    """
    image = Instances(path, image_id, None, [], [], [])
    if text is None:
        return image
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        image.errors.append(f"{text!r} is no text in UTF-8: {error}; replace it")
        return image
    for place, line in enumerate(lines, 1):
        name = f"line {place} of {text!r}"
        try:
            if line.strip():
                add_object(image, _object(line, num_classes) | {"id": place}, name)
        except ValueError as error:
            image.errors.append(f"{name} {error}; correct it")
    return image


def _object(line: str, num_classes: int) -> dict[str, Any]:
    """The object of a line; a ValueError says what is wrong with it."""
    try:
        label, *values = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"is {line.strip()!r}: expected numbers, CLASS X Y WIDTH HEIGHT") from None
    if label not in range(num_classes):
        raise ValueError(f"has the class {label:g}: there are {num_classes}, from 0 on")
    outline = None
    if len(values) == 4:
        x, y, w, h = values
        box = [x - w / 2, y - h / 2, w, h]
    elif len(values) >= 6 and len(values) % 2 == 0:
        outline = [values]
        first, last = (min(values[::2]), min(values[1::2])), (max(values[::2]), max(values[1::2]))
        box = [*first, last[0] - first[0], last[1] - first[1]]
    else:
        raise ValueError(f"has {len(values) + 1} numbers: expected CLASS X Y WIDTH HEIGHT, or an outline")
    return {"box": box, "label": int(label) + 1, "iscrowd": 0, "area": None, "segmentation": outline}
