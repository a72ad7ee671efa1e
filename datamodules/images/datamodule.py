"""A LightningDataModule over any tree of class folders: train/CLASS/*.jpg, val/CLASS/*.jpg and, optionally, test/."""

import copy
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.images.base import ImageDataModule
from datamodules.images.collate import Collate, mixing
from datamodules.images.folder import ImageFolder, ImagesToPredict, find_class_folders
from datamodules.images.names import NumberedClasses, check_same_classes, mapped_names, readable_names
from datamodules.loading.files import what_is_there


class ImageFolderDataModule(NumberedClasses, ImageDataModule):
    """Images sorted into class folders, one tree per split; the class index is the place of the sorted folder name.

    Batches are `(images (B, 3, H, W) float, targets (B,) int64)`; with MixUp or CutMix the training targets are soft,
    `(B, C)` float. Prediction batches are `(images, paths)`. Without `test_split`, the test images are those of `test/`
    where the tree has it, else the validation images.

    Args:
        root: The folder that holds the splits.
        img_size: Pixels, one number or (height, width).
        batch_size: Images per device in training.
        num_classes: Checked against the tree; `None` = count the class folders.
        cache: Decode every image once into memory (images of one size only; 60,000 of 32 x 32 take 180 MB).
        class_map: A JSON file `{"FOLDER": "CLASS NAME", ...}` for a model that knows the classes by other names than
            the folders'. Folders that the file leaves out keep their names.
        kwargs: As for `ImageDataModule`.

    Raises:
        ValueError, FileNotFoundError: One line that names the path or option, what was found and what to do.
    """

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 128,
        num_classes: int | None = None,
        cache: bool = False,
        class_map: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, img_size=img_size, batch_size=batch_size, **kwargs)
        self._num_classes, self.cache, self.class_map = num_classes, cache, class_map

    def _known_classes(self) -> list[str] | None:
        """Class folders that a subclass knows without a tree: prediction can then name classes without the data."""
        return None

    @property
    def classes(self) -> list[str]:
        """Sorted folder names of the training split (of the evaluated split where there is no training split)."""
        for split in (self.train_split, self.val_split, self.test_split):
            if split and (self.root / split).is_dir():
                return find_class_folders(self.root / split)
        known = self._known_classes()
        return find_class_folders(self.root / self.train_split) if known is None else known

    @property
    def class_names(self) -> list[str]:
        """Readable class names, in the order of the indices."""
        return readable_names(self.classes) if self.class_map is None else mapped_names(self.classes, self.class_map)

    # -- data sets ---------------------------------------------------------------------------------------------------

    def _check_classes(self) -> None:
        self.check_num_classes(self.root, "class folders")

    def _setup_training(self) -> None:
        train = self._read_split(self.train_split, training=True)
        if self.val_fraction:
            kept, held_out = self._hold_out(len(train))
            self._datasets["val"] = Subset(self._for_evaluation(train), held_out)
            train = Subset(train, kept)
        self._datasets["train"] = train

    def _val_dataset(self) -> Dataset:
        if not (self.root / self.val_split).is_dir():
            raise FileNotFoundError(
                f"no validation folder {str(self.root / self.val_split)!r}: {what_is_there(self.root)}; name one with "
                "data.val_split=..., or hold out a part of the training images with data.val_fraction=0.1"
            )
        return self._read_split(self.val_split)

    def _test_dataset(self) -> Dataset:
        split = self.test_split or ("test" if (self.root / "test").is_dir() else None)
        if split is None or (split == self.val_split and not self.val_fraction):
            return self.dataset("val")
        return self._read_split(split)

    def _predict_dataset(self, paths: list[str]) -> Dataset:
        return ImagesToPredict([(path, path) for path in paths], self.pipeline(False).sample, self.img_size)

    def _read_split(self, split: str, training: bool = False) -> Dataset:
        transform = self.pipeline(training).sample
        dataset = ImageFolder(self.root / split, transform, self.skip_corrupt, self.cache, self.excluded)
        check_same_classes(dataset.classes, self.classes, self.root / split, self.root / self.train_split)
        return dataset

    def _for_evaluation(self, dataset: ImageFolder) -> ImageFolder:
        """The same files (and the same cache in memory) with the transform of evaluation."""
        other = copy.copy(dataset)
        other.transform = self.pipeline(False).sample
        return other

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _loader(self, name: str, training: bool = False) -> DataLoader:
        dataset, pipeline = self.dataset(name), self.pipeline(training)
        if training:
            collate = Collate(self.num_classes, **mixing(self.options), pipeline=pipeline)
            return self._training_loader(dataset, collate)
        return self._evaluation_loader(dataset, Collate(pipeline=pipeline))

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches `(images (B, 3, H, W), targets (B,) or soft (B, C))`."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        """Batches `(images (B, 3, H, W), targets (B,))` in the order of the tree."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, over the test split."""
        return self._loader("test")

    def bank_dataloader(self) -> DataLoader:
        """The training images in the order of the tree, prepared as for evaluation: a bank of nearest neighbours."""
        if "bank" not in self._datasets:
            train = self.dataset("train")
            whole = self._for_evaluation(getattr(train, "dataset", train))
            self._datasets["bank"] = Subset(whole, train.indices) if isinstance(train, Subset) else whole
        return self._loader("bank")

    def predict_dataloader(self) -> DataLoader:
        """Batches `(images (B, 3, H, W), paths)` in sorted order, as `ImagesToPredict` gives them."""
        return self._loader("predict")
