"""COCO as semantic segmentation: COCO-Stuff's masks, and panoptic labels (PNG and JSON)."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.dense.base import BadSampleError
from datamodules.dense.index import categories_of, read_coco
from datamodules.dense.mask_folder import files_by_stem
from datamodules.dense.masks import IGNORE, ClassMap, palette_of, read_colours
from datamodules.dense.segmentation import SegmentationDataModule
from datamodules.images.folder import EXTENSIONS
from datamodules.loading.texts import Texts
from datamodules.loading.untrusted import inside

# COCO-Stuff's labels in the order of their numbers: 80 things of 1 to 90, 91 kinds of stuff from 92 to 182.
_THINGS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
_STUFF = (
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, "
    "ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, "
    "floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, "
    "grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, "
    "net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, "
    "rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, "
    "structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, "
    "wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"
)
_NO_THINGS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # numbers up to 90 that COCO gave to nothing


class COCOStuffDataModule(SegmentationDataModule):
    """COCO-Stuff: 171 classes, 118,287 training and 5,000 validation images of COCO 2017.

    `train2017/*.jpg` (or `images/train2017`), and `stuffthingmaps/train2017/*.png` (or `annotations/train2017`), in
    which the number of a label is one less than in the list of labels; likewise `val2017`.

    Args:
        root: The folder of the data.
        train_split: Name of the training split's folder.
        val_split: Name of the validation split's folder.
        kwargs: As for `SegmentationDataModule`.
    """

    class_names = [name for names in (_THINGS, _STUFF) for name in names.split(", ")]
    test_is_public = False

    def __init__(self, root: str, train_split: str = "train2017", val_split: str = "val2017", **kwargs: Any) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)

    def _class_map(self) -> ClassMap:
        numbers = [number for number in range(1, 183) if number not in _NO_THINGS and number != 91]
        classes = {number - 1: label for label, number in enumerate(numbers)}
        return ClassMap(len(numbers), classes, self.unlabelled)

    def _folder(self, split: str, *above: str) -> Path:
        places = [self.root / folder / split for folder in above]
        return next((place for place in places if place.is_dir()), places[0])

    def _has(self, split: str) -> bool:
        return self._folder(split, "stuffthingmaps", "annotations").is_dir()

    def _samples(self, split: str) -> list[tuple[str, str]]:
        masks = self._folder(split, "stuffthingmaps", "annotations")
        images = files_by_stem(self._folder(split, "", "images"), EXTENSIONS)
        return [(path, os.path.join(masks, stem + ".png")) for stem, path in images.items()]


class COCOPanopticDataModule(SegmentationDataModule):
    """Panoptic labels in COCO's layout as semantic masks: 133 classes of COCO 2017, or those of any such file.

    `annotations/panoptic_SPLIT.json`, its PNGs in `annotations/panoptic_SPLIT/`, and the images in `SPLIT/` or
    `images/SPLIT/`. Segments of one category become one class; crowds among them; pixels of no segment are ignored.

    Args:
        root: The folder of the data.
        train_split: Name of the training split, `train2017` of COCO.
        val_split: Name of the validation split, `val2017` of COCO.
        annotations: The JSON file of a split below `root`, with `{split}` in the place of its name; the folder of the
            PNGs has its name.
        kwargs: As for `SegmentationDataModule`.
    """

    test_is_public = False

    def __init__(
        self,
        root: str,
        train_split: str = "train2017",
        val_split: str = "val2017",
        annotations: str = "annotations/panoptic_{split}.json",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)
        self.annotations = annotations
        self._classes: list[dict[str, Any]] | None = None
        self._segments: dict[str, dict[str, dict[int, int]]] = {}

    def _source(self, split: str) -> Path:
        return self.root / self.annotations.replace("{split}", split)

    def _has(self, split: str) -> bool:
        return self._source(split).is_file()

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The classes, `{"id", "name", "color", ...}`, in the order of their numbers."""
        if self._classes is None:
            split = next((split for split in (self.val_split, self.train_split) if self._has(split)), self.train_split)
            data = read_coco(self._source(split))
            categories_of(data, self._source(split))
            self._classes = sorted(data["categories"], key=lambda item: item["id"])
        return self._classes

    @property
    def class_names(self) -> list[str]:
        """Names of the categories."""
        return [item["name"] for item in self.categories]

    def _known_palette(self) -> list[tuple[int, int, int]]:
        colours = [item.get("color") for item in self.categories]
        good = all(isinstance(colour, list) and len(colour) == 3 for colour in colours)
        return [tuple(colour) for colour in colours] if good else palette_of(self.num_classes)

    def _samples(self, split: str) -> list[tuple[str, str]]:
        file = self._source(split)
        data, where = read_coco(file), repr(str(file))
        labels = {item["id"]: label for label, item in enumerate(self.categories)}
        folder = next((f for f in (self.root / split, self.root / "images" / split) if f.is_dir()), self.root / split)
        masks = file.with_suffix("")
        samples, self._segments[split] = [], {}
        try:
            names = {item["id"]: inside(item["file_name"], where) for item in data["images"]}
            for item in data["annotations"]:
                mask = str(masks / inside(item["file_name"], where))
                samples.append((str(folder / names[item["image_id"]]), mask))
                found = {int(part["id"]): labels[part["category_id"]] for part in item["segments_info"]}
                self._segments[split][mask] = found
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{where} is no file of panoptic labels: {error} is missing, unknown or of another kind; expected "
                "COCO's images (id, file_name), categories and annotations (image_id, file_name, segments_info)"
            ) from error
        return samples

    def _reader(self, split: str) -> "ReadPanoptic":
        return ReadPanoptic(self._segments[split])


class ReadPanoptic:
    """The path of a panoptic PNG -> classes `(H, W)`, uint8, 255 where there is none.

    Args:
        segments: For each path, the class of each segment's number.
    """

    def __init__(self, segments: dict[str, dict[int, int]]) -> None:
        self._places = {path: place for place, path in enumerate(segments)}
        self._texts = Texts([[json.dumps(list(found.items()))] for found in segments.values()])

    def __call__(self, path: str) -> Tensor:
        """Reads it; a `BadSampleError` if it has a segment that the JSON does not know."""
        colours = read_colours(path).astype(np.int64)  # (H, W, 3)
        numbers = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        known = dict(json.loads(self._texts.get(self._places[path], 0)))
        present, places = np.unique(numbers, return_inverse=True)
        if strange := [number for number in present.tolist() if number and number not in known]:
            raise BadSampleError(
                f"the mask {path!r} has the segment {strange[0]}, which its JSON does not name; get both from one "
                "release, or leave the image out with data.exclude"
            )
        labels = np.array([known.get(number, IGNORE) for number in present.tolist()], np.uint8)  # of 0, no segment
        return torch.from_numpy(labels[places.reshape(numbers.shape)])
