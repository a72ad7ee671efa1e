"""A LightningDataModule over any tree of class folders: train/CLASS/*.jpg, val/CLASS/*.jpg and, optionally, test/."""

import copy
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.images.folder import ImageFolder, ImagesToPredict, find_class_folders, find_images, what_is_there
from datamodules.images.names import check_same_classes, mapped_names, readable_names
from datamodules.images.transforms import Collate, Pipeline, eval_transform, train_transform, transform_options
from datamodules.loading.checks import check_arguments
from datamodules.loading.resumable import training_loader
from datamodules.loading.unreadable import read_bad_files
from datamodules.loading.workers import default_workers, leave_signals

MIXING = {"mixup": "mixup", "cutmix": "cutmix", "prob": "mix_prob"}


class ImageFolderDataModule(LightningDataModule):
    """Images sorted into class folders, one tree per split; the class index is the place of the sorted folder name.

    Batches are ``(images (B, 3, H, W) float, targets (B,) int64)``; with MixUp or CutMix the training targets are soft,
    ``(B, C)`` float. Prediction batches are ``(images, paths)``. A transform option left at ``None`` is the recipe's.

    Args:
        root: the folder that holds the splits.
        img_size: pixels, one number or (height, width).
        batch_size: images per device in training.
        val_batch_size: images per device in validation, test and prediction; ``None`` = ``batch_size``.
        num_workers: loader processes per device; ``None`` = this machine's cores divided by its devices, at most 16.
        recipe: ``light`` (crop and flip), ``deit``, ``augreg``, ...; the single options below override it.
        scale: area range of the random resized crop.
        ratio: aspect-ratio range of the random resized crop.
        interpolation: ``bicubic``, ``bilinear``, ...
        hflip: probability of a horizontal flip.
        crop_padding: pixels to pad by before a random crop of ``img_size``, in place of the random resized crop.
        rand_augment: mapping of ``policy``, ``num_ops``, ``magnitude``, ...; ``false`` switches it off.
        color_jitter: strength of brightness, contrast and saturation jitter.
        random_erasing: probability of erasing a rectangle.
        mixup: alpha of MixUp; 0 = off.
        cutmix: alpha of CutMix; 0 = off.
        mix_prob: probability that a batch is mixed.
        crop_pct: in evaluation, the centre crop's part of the resized image.
        mean: per-channel mean for the normalisation, of pixels in 0..1.
        std: per-channel standard deviation for the normalisation.
        train_split: name of the training folder.
        val_split: name of the validation folder (unused when ``val_fraction`` is set).
        test_split: name of the test folder; ``None`` = ``test`` where the tree has it, else the validation images.
        val_fraction: part of the training images to hold out for validation, drawn by ``seed``.
        num_classes: checked against the tree; ``None`` = count the class folders.
        class_map: a JSON file ``{"FOLDER": "CLASS NAME", ...}``: how class folders are called in a model that knows
            them by other names; folders that it leaves out keep their own.
        seed: draws ``val_fraction`` (the order of training follows Lightning's ``seed_everything``).
        predict_path: an image, a folder or a glob to predict on.
        skip_corrupt: leave out images that cannot be decoded, with a warning that names each; else they are an error.
            In prediction they have their error in place of an answer.
        exclude: a list of files to leave out, as ``lookupvit check-data`` writes it.
        cache: decode every image once into memory (images of one size only; 60,000 of 32 x 32 take 180 MB).
        persistent_workers: keep the loader processes between epochs.
        prefetch_factor: batches that each worker prepares ahead; ``None`` = torch's default.
        drop_last: leave out the last, smaller batch in training.

    Raises:
        ValueError, FileNotFoundError: one line that names the path or option, what was found and what to do.
    """

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        num_workers: int | None = None,
        recipe: str = "light",
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] | None = None,
        interpolation: str | None = None,
        hflip: float | None = None,
        crop_padding: int | None = None,
        rand_augment: dict | bool | None = None,
        color_jitter: float | None = None,
        random_erasing: float | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        mix_prob: float | None = None,
        crop_pct: float | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        val_fraction: float = 0.0,
        num_classes: int | None = None,
        seed: int = 0,
        predict_path: str | None = None,
        skip_corrupt: bool = False,
        exclude: str | None = None,
        cache: bool = False,
        persistent_workers: bool = True,
        prefetch_factor: int | None = None,
        drop_last: bool = True,
        class_map: str | None = None,
    ) -> None:
        super().__init__()
        self.class_map, self.root = class_map, Path(root).expanduser()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.batch_size, self.val_batch_size = batch_size, batch_size if val_batch_size is None else val_batch_size
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.persistent_workers = persistent_workers
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.val_fraction, self.seed, self.predict_path = val_fraction, seed, predict_path
        self.skip_corrupt, self.exclude, self.cache, self.drop_last = skip_corrupt, exclude, cache, drop_last
        self.options = transform_options(
            recipe,
            scale=scale,
            ratio=ratio,
            interpolation=interpolation,
            hflip=hflip,
            crop_padding=crop_padding,
            rand_augment=rand_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            mixup=mixup,
            cutmix=cutmix,
            mix_prob=mix_prob,
            crop_pct=crop_pct,
            mean=mean,
            std=std,
        )
        self.mean, self.std = self.options["mean"], self.options["std"]
        self._num_classes = num_classes
        self._datasets: dict[str, Dataset] = {}
        check_arguments(self, {"batch_size": 1, "val_batch_size": 1})

    @property
    def excluded(self) -> set[str]:
        """Absolute paths of the files that ``exclude`` lists."""
        return set() if self.exclude is None else read_bad_files(self.exclude, self.root)

    def _known_classes(self) -> list[str] | None:
        """Class folders a subclass knows without a tree; prediction can then name classes on a machine without data."""
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
    def num_classes(self) -> int:
        """The number given, else the number of class folders."""
        return len(self.classes) if self._num_classes is None else self._num_classes

    @property
    def class_names(self) -> list[str]:
        """Readable class names, in the order of the indices."""
        return readable_names(self.classes) if self.class_map is None else mapped_names(self.classes, self.class_map)

    def setup(self, stage: str | None = None) -> None:
        """Check the tree and list its files.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all but ``predict``.

        Raises:
            ValueError, FileNotFoundError: the tree is not what it must be.
        """
        if stage == "predict":  # needs no training data
            if self.predict_path is None:
                raise ValueError("nothing to predict on: set data.predict_path to an image, a folder or a glob")
            samples = [(path, path) for path in find_images(self.predict_path)]
            transform = self._transform(training=False).sample
            self._datasets["predict"] = ImagesToPredict(samples, transform, self.img_size)
            return
        classes = self.classes
        if self._num_classes not in (None, len(classes)):
            raise ValueError(
                f"data.num_classes is {self._num_classes}, but {str(self.root)!r} has {len(classes)} class folders "
                f"({', '.join(classes[:3])}, ...); set data.num_classes={len(classes)} or check data.root"
            )
        if stage in (None, "fit") and "train" not in self._datasets:
            self._setup_training()
        if stage in (None, "fit", "validate") and "val" not in self._datasets:
            self._setup_validation()
        if stage in (None, "test") and "test" not in self._datasets:
            self._setup_test()

    def _setup_training(self) -> None:
        train = self._read_split(self.train_split, training=True)
        if self.val_fraction:
            held = self._like(train, training=False)
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed)).tolist()
            size = max(1, round(len(train) * self.val_fraction))
            # sorted: neighbours on disk are read one after the other
            self._datasets["val"] = Subset(held, sorted(order[:size]))
            train = Subset(train, sorted(order[size:]))
        self._datasets["train"] = train

    def _setup_validation(self) -> None:
        if self.val_fraction:
            self._setup_training()
            return
        if not (self.root / self.val_split).is_dir():
            raise FileNotFoundError(
                f"no validation folder {str(self.root / self.val_split)!r}: {what_is_there(self.root)}; name one with "
                "data.val_split=..., or hold out a part of the training images with data.val_fraction=0.1"
            )
        self._datasets["val"] = self._read_split(self.val_split)

    def _setup_test(self) -> None:
        split = self.test_split or ("test" if (self.root / "test").is_dir() else None)
        if split is None or (split == self.val_split and not self.val_fraction):
            if "val" not in self._datasets:
                self._setup_validation()
            self._datasets["test"] = self._datasets["val"]
        else:
            self._datasets["test"] = self._read_split(split)

    def _read_split(self, split: str, training: bool = False) -> Dataset:
        transform = self._transform(training).sample
        dataset = ImageFolder(self.root / split, transform, self.skip_corrupt, self.cache, self.excluded)
        check_same_classes(dataset.classes, self.classes, self.root / split, self.root / self.train_split)
        return dataset

    def _transform(self, training: bool) -> Pipeline:
        return (train_transform if training else eval_transform)(self.img_size, self.options)

    def _like(self, dataset: ImageFolder, training: bool) -> ImageFolder:
        """The same files (and the same cache in memory) with the other transform."""
        other = copy.copy(dataset)
        other.transform = self._transform(training).sample
        return other

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _loader(self, name: str, training: bool = False) -> DataLoader:
        if name not in self._datasets:
            self.setup({"train": "fit", "val": "validate"}.get(name, name))
        dataset, trainer = self._datasets[name], self.trainer
        workers = default_workers(trainer) if self.num_workers is None else self.num_workers
        options = {
            "persistent_workers": self.persistent_workers and workers > 0,
            "prefetch_factor": self.prefetch_factor if workers > 0 else None,
        }
        if training:
            mixing = {name: self.options[option] for name, option in MIXING.items()}
            collate = Collate(self.num_classes, **mixing, pipeline=self._transform(True))
            options |= {"trainer": trainer, "num_workers": workers, "drop_last": self.drop_last}
            return training_loader(dataset, self.batch_size, collate, **options)
        return DataLoader(
            dataset,
            batch_size=self.val_batch_size,
            num_workers=workers,
            collate_fn=Collate(pipeline=self._transform(False)),
            worker_init_fn=leave_signals,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches ``(images (B, 3, H, W), targets (B,) or soft (B, C))``."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        """Batches ``(images (B, 3, H, W), targets (B,))`` in the order of the tree."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, over the test split."""
        return self._loader("test")

    def bank_dataloader(self) -> DataLoader:
        """The training images in the order of the tree, prepared as for evaluation: a bank of nearest neighbours."""
        if "bank" not in self._datasets:
            self.setup("fit")
            train = self._datasets["train"]
            whole = self._like(getattr(train, "dataset", train), training=False)
            self._datasets["bank"] = Subset(whole, train.indices) if isinstance(train, Subset) else whole
        return self._loader("bank")

    def predict_dataloader(self) -> DataLoader:
        """Batches ``(images (B, 3, H, W), paths)`` in sorted order; of `ImagesToPredict`."""
        return self._loader("predict")

    def teardown(self, stage: str | None = None) -> None:
        """Say how many corrupt images were left out, if any."""
        for name, dataset in self._datasets.items():
            skipped = getattr(dataset, "dataset", dataset).skipped
            if skipped:
                warnings.warn(f"{len(skipped)} corrupt images were left out of {name}: {skipped[0]}, ...", stacklevel=2)
