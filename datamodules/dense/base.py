"""The base of the DataModules of dense labels: their options, their splits, and images in batches of several sizes.

Letters: `B` batch, `Y, X` height and width of a batch, `H, W` of one image.
"""

import os
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.images.base import SplitDataModule
from datamodules.images.decode import CorruptImageError, decode_rgb
from datamodules.images.folder import LabelledImages
from datamodules.images.transforms import transform_options
from datamodules.loading.unreadable import READ_ERRORS, unreadable


class BadSampleError(CorruptImageError):
    """Labels that cannot be those of their image; one line that names the file and the remedy."""


def normalise(image: Tensor, options: dict[str, Any]) -> Tensor:
    """uint8 `(3, H, W)` -> normalised float `(3, H, W)`."""
    image = v2.functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    return v2.functional.normalize(image, list(options["mean"]), list(options["std"]), inplace=True)


def stack_padded(images: list[Tensor], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Images of several sizes in one batch, padded by zeros at the bottom and at the right.

    Args:
        images: `(3, H, W)` each.
        size: (Y, X) of the batch; None = the largest height and the largest width.

    Returns:
        The batch `(B, 3, Y, X)`, and the true heights and widths `(B, 2)`, int64.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(0).tolist() if size is None else size
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


class DenseImages(LabelledImages):
    """Images with labels as large as they are; a sample is what a subclass makes of both.

    Args:
        samples: Pairs of an image's path and its labels.
        transform: Of a sample.
        skip_corrupt: As for `ImageFolder`; here also of labels that cannot be those of the image.
    """

    def check(self, index: int) -> list[tuple[str, str]]:
        """What is wrong with a sample: pairs of a file and a reason, as `lookupvit check-data` lists them."""
        try:
            self._decode(index)
        except READ_ERRORS as error:
            path = self.samples[index][0]
            # of an image the reason alone, as of other images: the list has its path before it
            text = " ".join(str(error).split())
            return [(path, text if isinstance(error, BadSampleError) else text.split("; ")[0].rpartition("): ")[2])]
        return []


class ToPredict(LabelledImages):
    """Images without labels, each in its place: one that cannot be read is blank, its name an `Unreadable`.

    Args:
        paths: Of the images.
        transform: uint8 `Image (3, H, W)` to the same of the size for the model.
        options: Normalisation.
        blank: Height and width of a blank.
    """

    def __init__(self, paths: list[str], transform: v2.Transform, options: dict[str, Any], blank: tuple[int, int]):
        super().__init__([(path, path) for path in paths], transform)
        self.options, self.blank = options, blank

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[int, int], str]:
        """The normalised image `(3, H, W)`, its height and width in the file, and its name."""
        name = self.samples[index][0]
        try:
            image = decode_rgb(name)
            changed = self.transform(tv_tensors.Image(image))
        except READ_ERRORS as error:
            return torch.zeros(3, *self.blank), self.blank, unreadable(name, error)
        return normalise(changed, self.options), tuple(image.shape[-2:]), name


class DenseDataModule(SplitDataModule):
    """A subclass lists the samples of a split, and makes data sets and batches of them.

    Args:
        root: The folder of the data.
        img_size: Pixels of the crop in training, one number or (height, width).
        batch_size: Images per device in training.
        val_batch_size: Images per device in evaluation, whose images are whole.
        scale: Least and greatest factor of the random scale in training.
        hflip: Probability of a horizontal flip in training.
        color_jitter: Strength of brightness, contrast and saturation jitter, one number; or three or four, the fourth
            of the hue.
        color_jitter_prob: Probability of the colour jitter.
        short_side: Pixels that the shorter side of an image is resized to in evaluation; `None` = its own size.
        mean: Per-channel mean for the normalisation, of pixels in 0..1.
        std: Per-channel standard deviation for the normalisation.
        kwargs: As for `SplitDataModule`.

    Raises:
        ValueError, FileNotFoundError: One line that names the path or option, what was found and what to do.
    """

    test_is_public = True  # False: the labels of `test` are withheld

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 512,
        batch_size: int = 16,
        val_batch_size: int | None = 1,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        color_jitter: float | list[float] = 0.0,
        color_jitter_prob: float = 1.0,
        short_side: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, img_size=img_size, batch_size=batch_size, val_batch_size=val_batch_size, **kwargs)
        colours = {"color_jitter": color_jitter, "color_jitter_prob": color_jitter_prob, "mean": mean, "std": std}
        self.options = transform_options("light", hflip=hflip, **colours)
        self.mean, self.std = self.options["mean"], self.options["std"]
        self.scale, self.short_side = tuple(scale), short_side
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"data.scale needs two positive factors, the smaller first, got {scale}")
        if short_side is not None:
            self._check_at_least(1, "short_side")

    # -- data sets ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def _samples(self, split: str) -> list[tuple[str, Any]]:
        """Every image of a split, excluded ones too, with its labels; files may be missing."""

    @abstractmethod
    def _labelled(self, samples: list[tuple[str, Any]], split: str, training: bool = False) -> DenseImages:
        """The data set of some of these samples."""

    def _check_samples(self, samples: list[tuple[str, Any]], split: str) -> None:
        """Raises an error where files of these samples are missing."""

    def _split(self, split: str) -> list[tuple[str, Any]]:
        """The samples of a split that are not excluded, with all their files."""
        samples = self._samples(split)
        if excluded := self.excluded:
            samples = [sample for sample in samples if os.path.abspath(sample[0]) not in excluded]
            if not samples:
                raise ValueError("data.exclude lists every image of a split: check the list, or set it to null")
        self._check_samples(samples, split)
        return samples

    def _setup_training(self) -> None:
        samples = self._split(self.train_split)
        kept, held_out = self._hold_out(len(samples))
        if held_out:
            self._datasets["val"] = self._labelled([samples[place] for place in held_out], self.train_split)
        self._datasets["train"] = self._labelled([samples[place] for place in kept], self.train_split, training=True)

    def _val_dataset(self) -> Dataset:
        return self._labelled(self._split(self.val_split), self.val_split)

    def _test_dataset(self) -> Dataset:
        split = self.test_split or ("test" if self.test_is_public and self._has("test") else None)
        if split is None or (split == self.val_split and not self.val_fraction):
            return self.dataset("val")
        return self._labelled(self._split(split), split)

    def _has(self, split: str) -> bool:
        """Whether a split is on disk."""
        return False

    def to_check(self) -> dict[str, DenseImages]:
        """The data sets of all splits on disk, whatever is wrong with their files: for `lookupvit check-data`."""
        test = self.test_split or ("test" if self.test_is_public else None)
        splits = [split for split in dict.fromkeys([self.train_split, self.val_split, test]) if split]
        found = {split: self._labelled(self._samples(split), split) for split in splits if self._has(split)}
        return found or {self.train_split: self._labelled(self._samples(self.train_split), self.train_split)}

    # -- loaders -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _collate(self, training: bool = False) -> Any:
        """Makes a batch of samples."""

    @abstractmethod
    def _collate_predict(self) -> Any:
        """Makes a batch of samples of `ToPredict`."""

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches."""
        return self._training_loader(self.dataset("train"), self._collate(training=True))

    def val_dataloader(self) -> DataLoader:
        """Batches of whole images, in the order of the split."""
        return self._evaluation_loader(self.dataset("val"), self._collate())

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, over the test split."""
        return self._evaluation_loader(self.dataset("test"), self._collate())

    def predict_dataloader(self) -> DataLoader:
        """Batches of images without labels, in sorted order; each input has its row."""
        return self._evaluation_loader(self.dataset("predict"), self._collate_predict())
