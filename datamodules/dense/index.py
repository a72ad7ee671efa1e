"""Boxes and instance masks of a split: what COCO's JSON says, checked and compact."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.loading.annotations import read_json
from datamodules.loading.texts import Texts
from datamodules.loading.untrusted import inside

_TOLERANCE = 1.0  # pixels that a box may lie outside of its image; COCO's own round so


class Category(NamedTuple):
    """A class: its number in the file, and its name."""

    id: int
    name: str


class Instances(NamedTuple):
    """The objects of one image.

    Attributes:
        path: Of the image.
        image_id: Its number; no other image of the split has it.
        size: Height and width, or None where the labels do not say.
        objects: Each with `box` [x, y, width, height] in pixels, `label` from 1 on, `iscrowd`, `area`, `segmentation`
            (or None) and `id`. Boxes are normalised where `size` is None.
        problems: What is wrong with boxes, which were left out or cut off at the image's edge for that.
        errors: What is so wrong with labels that nothing is read before it is corrected, or the image is left out.
    """

    path: str
    image_id: int
    size: tuple[int, int] | None
    objects: list[dict[str, Any]]
    problems: list[str]
    errors: list[str]


def read_categories(file: Path) -> list[Category]:
    """The classes of an annotation file, in the order of their numbers.

    Raises:
        FileNotFoundError, ValueError: It is missing or malformed.
    """
    return categories_of(read_coco(file), file)


def read_coco(file: Path) -> dict[str, Any]:
    """The content of a file in COCO's form, with its lists of images and categories."""
    data = read_json(file)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "categories")):
        raise ValueError(f"{str(file)!r} is no COCO file: expected lists of images, annotations and categories")
    return data


def categories_of(data: dict[str, Any], file: Path) -> list[Category]:
    """The classes of that, in the order of their numbers."""
    try:
        found = sorted(Category(item["id"], item["name"]) for item in data["categories"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r}: a category has no id or name: {error}") from error
    if strange := [each for each in found if type(each.id) is not int or type(each.name) is not str]:
        raise ValueError(f"{str(file)!r}: a category needs a whole number as id and a name, not {tuple(strange[0])}")
    if not found or len({category.id for category in found}) < len(found):
        raise ValueError(f"{str(file)!r} has no categories, or two of one id: give each class an id of its own")
    return found


def read_instances(file: Path, folder: Path) -> tuple[list[Category], list[Instances]]:
    """The classes and the images of a file `instances_SPLIT.json`, in its order; images may be missing.

    Args:
        file: COCO's JSON, with `bbox`, `segmentation`, `iscrowd` and `area` of each annotation.
        folder: Of the images.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is malformed, or names an image or a category that it does not have.
    """
    data = read_coco(file)
    categories = categories_of(data, file)
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    where = repr(str(file))
    images: dict[int, Instances] = {}
    try:
        for item in data["images"]:
            number, size = item["id"], (int(item["height"]), int(item["width"]))
            if type(number) is not int or min(size) < 1:
                raise TypeError(f"a whole number as id and a size (found {number!r}, {size})")
            if number in images:
                raise ValueError(f"{where} gives the id {number} to two images: every image needs an id of its own")
            path = str(folder / inside(item["file_name"], where))
            images[number] = Instances(path, number, size, [], [], [])
        for place, item in enumerate(data.get("annotations") or []):
            name = f"annotation {item.get('id', f'number {place}')}"
            if item["image_id"] not in images:
                raise ValueError(f"{where}: {name} is of image {item['image_id']}, which is not among its images")
            image = images[item["image_id"]]
            if item["category_id"] not in labels:
                image.errors.append(
                    f"{name} has the category {item['category_id']}, which is not among the categories; correct it"
                )
                continue
            found = {"box": item["bbox"], "label": labels[item["category_id"]], "id": item.get("id", place)}
            found |= {"iscrowd": int(item.get("iscrowd", 0)), "segmentation": item.get("segmentation") or None}
            add_object(image, found | {"area": item.get("area")}, name)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{where} is no file of instances: {error} is missing or of another kind; expected COCO's images (id, "
            "file_name, height, width) and annotations (image_id, category_id, bbox)"
        ) from error
    return categories, list(images.values())


def add_object(image: Instances, found: dict[str, Any], name: str) -> None:
    """Adds an object to an image, its box cut off at the image's edge; one whose box is empty is left out.

    Either is a problem of the image, unless a box lies less than a pixel outside; a box that is none is an error.
    """
    box = found["box"]
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        image.errors.append(f"{name}: the box {box!r} has no four numbers; correct it")
        return
    height, width = image.size or (1, 1)
    tolerance = _TOLERANCE if image.size else 1e-3
    x, y, w, h = box
    first, last = (max(x, 0), max(y, 0)), (min(x + w, width), min(y + h, height))
    if not all(map(math.isfinite, box)) or last[0] <= first[0] or last[1] <= first[1]:
        kind = "is empty" if not (w > 0 and h > 0) else "lies outside of its image"
        image.problems.append(
            f"{name}: the box {box} {kind} ({width} x {height}) and is left out; correct or remove it"
        )
        return
    if max(-x, -y, x + w - width, y + h - height) > tolerance:
        image.problems.append(
            f"{name}: the box {box} reaches beyond its image ({width} x {height}) and is cut off there; correct it"
        )
    found["box"] = [first[0], first[1], last[0] - first[0], last[1] - first[1]]
    area = found.get("area")
    found["area"] = area if type(area) in (int, float) and area >= 0 else found["box"][2] * found["box"][3]
    image.objects.append(found)


def report(images: Sequence[Instances], where: str) -> None:
    """One error for all labels that cannot be read, else one warning for all boxes that are empty or reach too far.

    Raises:
        ValueError: It names one of the labels, and says how many there are.
    """
    if errors := [(image.path, error) for image in images for error in image.errors]:
        path, error = errors[0]
        more = f" (and {len(errors) - 1} more labels; lookupvit check-data lists them all)" if len(errors) > 1 else ""
        raise ValueError(f"{where}: {error}, or leave the image {path!r} out with data.exclude{more}")
    problems = [(image.path, problem) for image in images for problem in image.problems]
    if problems:
        path, problem = problems[0]
        warnings.warn(
            f"{len(problems)} boxes of {where} are left out or cut off, such as that of {path!r}: {problem} (lookupvit "
            "check-data lists them all)",
            stacklevel=2,
        )


class Records:
    """The objects of many images in one block of memory, which forked loader processes share without copying."""

    def __init__(self, images: Sequence[Instances]) -> None:
        self._texts = Texts([[json.dumps([image.image_id, image.size, image.objects])] for image in images])
        self.problems = {place: found for place, image in enumerate(images) if (found := image.errors + image.problems)}

    def __getitem__(self, index: int) -> tuple[int, list[int] | None, list[dict[str, Any]]]:
        """Number, size (height, width) or None, and objects of an image."""
        return tuple(json.loads(self._texts.get(index, 0)))
