"""COCO's instances, and any data in their layout."""

from pathlib import Path
from typing import Any

from datamodules.dense.detection import DetectionDataModule
from datamodules.dense.index import Category, Instances, read_categories, read_instances


class COCOInstancesDataModule(DetectionDataModule):
    """`annotations/instances_SPLIT.json`, and the images in `SPLIT/`, `images/SPLIT/` or `images/`.

    Masks are polygons, run lengths or compressed run lengths. Without `test_split`, the test images are the validation
    images.

    Args:
        root: The folder of the data.
        train_split: Name of the training split, `train2017` of COCO.
        val_split: Name of the validation split, `val2017` of COCO.
        annotations: The JSON file of a split below `root`, with `{split}` in the place of its name.
        num_classes: Checked against the categories of the file; `None` = as many as it has.
        kwargs: As for `DetectionDataModule`.
    """

    test_is_public = False

    def __init__(
        self,
        root: str,
        train_split: str = "train2017",
        val_split: str = "val2017",
        annotations: str = "annotations/instances_{split}.json",
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)
        self.annotations, self._num_classes = annotations, num_classes
        self._categories: list[Category] | None = None

    @property
    def categories(self) -> list[Category]:
        """The classes, in the order of their numbers."""
        if self._categories is None:  # of validation if there is one: its file is the smaller one
            splits = (self.val_split, self.train_split, self.test_split)
            there = [split for split in splits if split and self._source(split).is_file()]
            self._categories = read_categories(self._source((there or [self.train_split])[0]))
        return self._categories

    @property
    def num_classes(self) -> int:
        """Number of classes, without the background; where no annotation file is there, what was given."""
        splits = (self.val_split, self.train_split, self.test_split)
        if self._num_classes is not None and not any(split and self._has(split) for split in splits):
            return self._num_classes  # in prediction a checkpoint says it
        return len(self.categories)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; label k is the name k - 1."""
        return [category.name for category in self.categories]

    @property
    def category_ids(self) -> list[int]:
        """Numbers of the classes in the file, for files of results."""
        return [category.id for category in self.categories]

    def _check_classes(self) -> None:
        if self._num_classes not in (None, self.num_classes):
            raise ValueError(
                f"data.num_classes={self._num_classes}, but the annotations in {str(self.root)!r} have "
                f"{self.num_classes} categories: set it to null to count them"
            )

    def _source(self, split: str) -> Path:
        return self.root / self.annotations.replace("{split}", split)

    def _folder(self, split: str) -> Path:
        places = (self.root / split, self.root / "images" / split, self.root / "images")
        return next((place for place in places if place.is_dir()), places[0])

    def _has(self, split: str) -> bool:
        return self._source(split).is_file()

    def _samples(self, split: str) -> list[tuple[str, Instances]]:
        categories, images = read_instances(self._source(split), self._folder(split))
        if categories != self.categories:
            raise ValueError(
                f"{str(self._source(split))!r} has other categories than the other split of {str(self.root)!r}: give "
                "every split the same, with the same ids"
            )
        return [(image.path, image) for image in images]
