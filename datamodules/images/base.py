"""The bases of the DataModules of single images: splits, a held-out part and corrupt files; a recipe of transforms."""

import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.images.folder import find_images
from datamodules.images.transforms import Pipeline, eval_transform, train_transform, transform_options
from datamodules.loading.datamodule import SPLITS_OF_STAGE, BaseDataModule


class SplitDataModule(BaseDataModule):
    """A subclass reads the splits: training, validation (perhaps held out of training), test, and files to predict on.

    Args:
        root: The folder of the data.
        val_fraction: Part of the training images to hold out for validation, drawn by `seed`.
        seed: Draws `val_fraction` (the order of training follows Lightning's `seed_everything`).
        skip_corrupt: Leave out images that cannot be decoded, with a warning that names each; otherwise they are an
            error. In prediction such an image gets its error in place of an answer.
        kwargs: As for `BaseDataModule`.
    """

    def __init__(
        self, root: str, val_fraction: float = 0.0, seed: int = 0, skip_corrupt: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.val_fraction, self.seed, self.skip_corrupt = val_fraction, seed, skip_corrupt
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction must lie in [0, 1), got {val_fraction}")

    # -- data sets ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Check the data on disk and list their files.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or `None` for all but `predict`.

        Raises:
            ValueError, FileNotFoundError: The data are not laid out as they must be.
        """
        if stage == "predict":  # needs no training data
            if self.predict_path is None:
                raise ValueError("nothing to predict on: set data.predict_path to an image, a folder or a glob")
            self._datasets["predict"] = self._predict_dataset(find_images(self.predict_path))
            return
        self._check_classes()
        for name in SPLITS_OF_STAGE[stage]:
            if name in self._datasets:
                continue
            if name == "train" or (name == "val" and self.val_fraction):
                self._setup_training()
            else:
                self._datasets[name] = self._test_dataset() if name == "test" else self._val_dataset()

    def _check_classes(self) -> None:
        """Raises a `ValueError` where the classes on disk are not those that were asked for."""

    @abstractmethod
    def _setup_training(self) -> None:
        """Sets the data set `train`, and with `val_fraction` also `val`."""

    @abstractmethod
    def _val_dataset(self) -> Dataset:
        """The validation split (not called with `val_fraction`)."""

    @abstractmethod
    def _test_dataset(self) -> Dataset:
        """The test split, or the validation split where there is none."""

    @abstractmethod
    def _predict_dataset(self, paths: list[str]) -> Dataset:
        """These images, in this order."""

    def _hold_out(self, count: int) -> tuple[list[int], list[int]]:
        """Places of the training images to train on, and of those held out; sorted, so that disks read in order."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        size = max(1, round(count * self.val_fraction)) if self.val_fraction else 0
        return sorted(order[size:]), sorted(order[:size])

    def teardown(self, stage: str | None = None) -> None:
        """Say how many corrupt images were left out, if any."""
        for name, dataset in self._datasets.items():
            if skipped := getattr(dataset, "dataset", dataset).skipped:
                warnings.warn(f"{len(skipped)} corrupt images were left out of {name}: {skipped[0]}, ...", stacklevel=2)


class ImageDataModule(SplitDataModule):
    """A subclass reads the splits. A transform option left at `None` is the recipe's.

    Args:
        root: The folder of the data.
        recipe: `light` (crop and flip), `deit`, `augreg`, ...; the single options below override it.
        scale: Area range of the random resized crop.
        ratio: Aspect-ratio range of the random resized crop.
        interpolation: `bicubic`, `bilinear`, ...
        hflip: Probability of a horizontal flip.
        crop_padding: Pixels to pad by before a random crop of `img_size`, in place of the random resized crop.
        rand_augment: Mapping of `policy`, `num_ops`, `magnitude`, ...; `false` switches it off.
        color_jitter: Strength of brightness, contrast and saturation jitter.
        random_erasing: Probability of erasing a rectangle.
        mixup: Alpha of MixUp; 0 = off.
        cutmix: Alpha of CutMix; 0 = off.
        mix_prob: Probability that a batch is mixed.
        crop_pct: In evaluation, the centre crop's part of the resized image.
        mean: Per-channel mean for the normalisation, of pixels in 0..1.
        std: Per-channel standard deviation for the normalisation.
        kwargs: As for `SplitDataModule`.
    """

    augment = True  # False: training images are transformed as in evaluation

    def __init__(
        self,
        root: str,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        crop = {"scale": scale, "ratio": ratio, "interpolation": interpolation, "crop_padding": crop_padding}
        change = {"hflip": hflip, "rand_augment": rand_augment, "color_jitter": color_jitter}
        mix = {"random_erasing": random_erasing, "mixup": mixup, "cutmix": cutmix, "mix_prob": mix_prob}
        self.options = transform_options(recipe, **crop, **change, **mix, crop_pct=crop_pct, mean=mean, std=std)
        self.mean, self.std = self.options["mean"], self.options["std"]
        self._pipelines: dict[bool, Pipeline] = {}

    def pipeline(self, training: bool) -> Pipeline:
        """The transforms of training or of evaluation, built once.

        A data set applies the pipeline's `sample` to each image, and the collate function its `stack` to the batch.
        """
        if training not in self._pipelines:
            self._pipelines[training] = self._build_pipeline(training)
        return self._pipelines[training]

    def _build_pipeline(self, training: bool) -> Pipeline:
        return (train_transform if training and self.augment else eval_transform)(self.img_size, self.options)
