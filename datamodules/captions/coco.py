"""Images with captions: COCO 2014 and 2017, and Karpathy's splits of COCO and Flickr."""

import os
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.captions.dataset import (
    CaptionedImages,
    CollateCaptions,
    Features,
    NumberedImages,
    NumberedToPredict,
    make_loader,
    numbered,
)
from datamodules.captions.index import Captioned, find_layout, read_split
from datamodules.captions.text import CaptionText
from datamodules.captions.tokenizer import MODEL_TYPES
from datamodules.images.folder import find_images
from datamodules.images.transforms import Pipeline, eval_transform, train_transform, transform_options
from datamodules.loading.checks import check_arguments
from datamodules.loading.unreadable import read_bad_files


class COCOCaptionsDataModule(CaptionText, LightningDataModule):
    """Captioned images; in training one caption an image is drawn at random, in evaluation all are references.

    Batches, with B images, T tokens of the longest caption of a batch:

    - training: ``(images (B, 3, H, W) float, tokens (B, T) int64, lengths (B,) int64)``;
    - validation, test: ``(images, image_ids (B,) int64, references)``, a list of B lists of captions;
    - prediction: ``(images, image_ids (B,), paths)``; the numbers are those that end the file names, as COCO's do,
      where every file has one of its own, else 0, 1, 2, ...

    Args:
        root: the folder of the data; ``datamodules/captions/index.py`` shows the layouts.
        annotations: ``auto``, ``karpathy``, ``2017``, ``2014``, or the path of a JSON file.
        img_size: pixels, one number or (height, width).
        batch_size: images per device in training.
        val_batch_size: images per device in evaluation and prediction; ``None`` = ``batch_size``.
        num_workers: loader processes per device; ``None`` = this machine's cores divided by its devices, at most 16.
        tokenizer: a SentencePiece ``.model`` file; ``None`` = ``root/tokenizer.model``, or else one is trained on the
            training captions.
        tokenizer_vocab_size: tokens at most of a tokenizer that is trained.
        tokenizer_type: ``unigram`` or ``bpe``, of a tokenizer that is trained.
        context_length: tokens of a caption at most, begin and end among them; longer ones are cut, and a line says so.
        augment: ``false`` = training images are made as in evaluation: their features can then be cached.
        recipe: ``light``, ``deit``, ``augreg``, ...; the single options below override it.
        scale: area range of the random resized crop.
        ratio: aspect-ratio range of the random resized crop.
        interpolation: ``bicubic``, ``bilinear``, ...
        hflip: probability of a horizontal flip; 0, because captions say left and right.
        crop_padding: pixels to pad by before a random crop of ``img_size``, in place of the random resized crop.
        rand_augment: mapping of ``policy``, ``num_ops``, ``magnitude``, ...; ``false`` switches it off.
        color_jitter: strength of brightness, contrast and saturation jitter.
        crop_pct: in evaluation, the centre crop's part of the resized image; 1, because captions tell of all of it.
        mean: per-channel mean for the normalisation, of pixels in 0..1.
        std: per-channel standard deviation for the normalisation.
        train_split: name of the training split.
        val_split: name of the validation split; ``train`` = the training images (unused with ``val_fraction``).
        test_split: name of the test split; ``None`` = ``test`` of a Karpathy file, else the validation images.
        val_fraction: part of the training images to hold out for validation, drawn by ``seed``.
        seed: draws ``val_fraction``.
        predict_path: an image, a folder or a glob to predict on.
        skip_corrupt: leave out images that cannot be decoded, with a warning that names each; else they are an error.
            In prediction they have their error in place of an answer.
        exclude: a list of files to leave out, as ``lookupvit check-data`` writes it.
        persistent_workers: keep the loader processes between epochs.
        drop_last: leave out the last, smaller batch in training.

    Raises:
        ValueError, FileNotFoundError: one line that names the path or option, what was found and what to do.
    """

    num_classes = 0
    class_names: list[str] = []

    def __init__(
        self,
        root: str,
        annotations: str = "auto",
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        num_workers: int | None = None,
        tokenizer: str | None = None,
        tokenizer_vocab_size: int = 32000,
        tokenizer_type: str = "unigram",
        context_length: int = 64,
        augment: bool = True,
        recipe: str = "light",
        scale: tuple[float, float] | None = (0.5, 1.0),
        ratio: tuple[float, float] | None = None,
        interpolation: str | None = None,
        hflip: float | None = 0.0,
        crop_padding: int | None = None,
        rand_augment: dict | bool | None = None,
        color_jitter: float | None = None,
        crop_pct: float | None = 1.0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        val_fraction: float = 0.0,
        seed: int = 0,
        predict_path: str | None = None,
        skip_corrupt: bool = False,
        exclude: str | None = None,
        persistent_workers: bool = True,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        self.root, self.annotations = Path(root).expanduser(), annotations
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.batch_size, self.val_batch_size = batch_size, batch_size if val_batch_size is None else val_batch_size
        self.num_workers, self.persistent_workers, self.drop_last = num_workers, persistent_workers, drop_last
        self.tokenizer_path, self.tokenizer_vocab_size, self.tokenizer_type = (
            tokenizer,
            tokenizer_vocab_size,
            tokenizer_type,
        )
        self.context_length, self.augment = context_length, augment
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.val_fraction, self.seed = val_fraction, seed
        self.predict_path, self.skip_corrupt, self.exclude = predict_path, skip_corrupt, exclude
        overrides = {"scale": scale, "ratio": ratio, "interpolation": interpolation, "hflip": hflip}
        overrides |= {"crop_padding": crop_padding, "rand_augment": rand_augment, "color_jitter": color_jitter}
        # mixed or erased images have no caption that is true of them
        overrides |= {"crop_pct": crop_pct, "mean": mean, "std": std, "random_erasing": 0.0}
        self.options = transform_options(recipe, **overrides)
        self.mean, self.std = self.options["mean"], self.options["std"]
        self._features: Features | None = None
        self._datasets: dict[str, Dataset] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        check_arguments(self, {"batch_size": 1, "val_batch_size": 1, "context_length": 3})
        if self.tokenizer_type not in MODEL_TYPES:
            raise ValueError(f"unknown data.tokenizer_type {self.tokenizer_type!r}: choose from {MODEL_TYPES}")

    def train_captions(self) -> list[str]:
        """Every caption of the training images, in the order of the annotations."""
        return self._split("train").captions()

    # -- data sets -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations and look for the files.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all but ``predict``.

        Raises:
            ValueError, FileNotFoundError: the data are not what they must be.
        """
        if stage == "predict":
            self._setup_prediction()
        if stage in (None, "fit") and "train" not in self._datasets:
            self._setup_training()
        if stage in (None, "fit", "validate") and "val" not in self._datasets:
            self._setup_validation()
        if stage in (None, "test") and "test" not in self._datasets:
            self._setup_test()

    def _read(self, split: str) -> list[Captioned]:
        layout = find_layout(self.root, self.annotations)
        images = read_split(self.root, layout, split)
        if self.exclude is not None:
            excluded = read_bad_files(self.exclude, self.root)
            images = [image for image in images if os.path.abspath(image.path) not in excluded]
        rank_zero_info(f"{len(images)} images with {sum(len(i.captions) for i in images)} captions: {split}, {layout}")
        return images

    def _setup_training(self) -> None:
        images, held = self._read(self.train_split), []
        if self.val_fraction:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed)).tolist()
            size = max(1, round(len(images) * self.val_fraction))
            held, images = ([images[i] for i in sorted(part)] for part in (order[:size], order[size:]))
            self._datasets["val"] = self._dataset(held)
        self._datasets["train"] = self._dataset(images, training=True)

    def _setup_validation(self) -> None:
        if self.val_fraction:
            self._setup_training()
        else:
            self._datasets["val"] = self._dataset(self._read(self.val_split))

    def _setup_test(self) -> None:
        layout = find_layout(self.root, self.annotations)
        split = self.test_split or ("test" if layout == "karpathy" or "dataset_" in Path(layout).name else None)
        if split is not None and split != self.val_split:
            self._datasets["test"] = self._dataset(self._read(split))
        else:
            if "val" not in self._datasets:
                self._setup_validation()
            self._datasets["test"] = self._datasets["val"]

    def _setup_prediction(self) -> None:
        if self.predict_path is None:
            raise ValueError("nothing to predict on: set data.predict_path to an image, a folder or a glob")
        samples = numbered(find_images(self.predict_path))
        self._datasets["predict"] = NumberedToPredict(samples, self._pipeline(False).sample, self.img_size)

    def _pipeline(self, training: bool) -> Pipeline:
        return (train_transform if training and self.augment else eval_transform)(self.img_size, self.options)

    def _dataset(self, images: list[Captioned], training: bool = False) -> CaptionedImages:
        return CaptionedImages(images, self._pipeline(training), self.skip_corrupt)

    @property
    def encoding_key(self) -> str:
        """What the features of `encoding_dataloader` depend on, besides the encoder; and that it can be had at all.

        Raises:
            ValueError: If training augments its images.
        """
        self._check_unaugmented()
        return repr((sorted(self.options.items(), key=str), self.img_size, self._split("train").images.samples))

    def _check_unaugmented(self) -> None:
        if self.augment:
            raise ValueError("features are cached only without augmentation: set data.augment=false")

    def use_features(self, features: Features) -> None:
        """Training batches carry features `(B, M, D)` from now on, and no training image is read.

        Args:
            features: ``features[i]`` is `(M, D)` of training image ``i``, in the order of `encoding_dataloader`.

        Raises:
            ValueError: If training augments its images.
        """
        self._check_unaugmented()
        self._features = features

    # -- loaders -------------------------------------------------------------------------------------------------------

    def _loader(self, dataset: Dataset, collate: CollateCaptions, training: bool = False) -> DataLoader:
        return make_loader(
            dataset,
            collate,
            self.batch_size if training else self.val_batch_size,
            training,
            self.drop_last,
            self.num_workers,
            self.persistent_workers,
            self.trainer,
        )

    def _split(self, name: str) -> Dataset:
        if name not in self._datasets:
            self.setup({"train": "fit", "val": "validate"}.get(name, name))
        return self._datasets[name]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches ``(images (B, 3, H, W), tokens (B, T), lengths (B,))``."""
        dataset = self._split("train")
        self.tell_of_cuts(dataset.captions())
        dataset.tokenizer, dataset.context, dataset.features = self.tokenizer, self.context_length, self._features
        pipeline = None if self._features is not None else self._pipeline(True)
        return self._loader(dataset, CollateCaptions(pipeline, self.tokenizer), training=True)

    def encoding_dataloader(self) -> DataLoader:
        """Every training image once and in order, as in evaluation: ``(images (B, 3, H, W), index (B,))``."""
        samples = [(path, (index,)) for path, index in self._split("train").images.samples]
        images = NumberedImages(samples, self._pipeline(False).sample, self.skip_corrupt)
        return self._loader(images, CollateCaptions(self._pipeline(False)))

    def val_dataloader(self) -> DataLoader:
        """Batches ``(images (B, 3, H, W), image_ids (B,), references)``, every image once."""
        return self._loader(self._split("val"), CollateCaptions(self._pipeline(False)))

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, over the test split."""
        return self._loader(self._split("test"), CollateCaptions(self._pipeline(False)))

    def predict_dataloader(self) -> DataLoader:
        """Batches ``(images (B, 3, H, W), image_ids (B,), paths)`` in sorted order; paths is a list of B strings.

        An image that cannot be read is blank, whatever ``skip_corrupt``; its path is an `Unreadable`, which says why.
        """
        return self._loader(self._split("predict"), CollateCaptions(self._pipeline(False)))

    def teardown(self, stage: str | None = None) -> None:
        """Say how many corrupt images were left out, if any."""
        for name, dataset in self._datasets.items():
            if skipped := dataset.skipped:
                warnings.warn(f"{len(skipped)} corrupt images were left out of {name}: {skipped[0]}, ...", stacklevel=2)
