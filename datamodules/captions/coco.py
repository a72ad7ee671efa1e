"""Images with captions: COCO 2014 and 2017, and Karpathy's splits of COCO and Flickr."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.captions.dataset import (
    CaptionedImages,
    CollateCaptions,
    Features,
    NumberedImages,
    NumberedToPredict,
    numbered,
)
from datamodules.captions.index import Captioned, find_layout, read_split
from datamodules.captions.tokenizer import MODEL_TYPES, Tokenizer, train_tokenizer
from datamodules.images.base import ImageDataModule


class COCOCaptionsDataModule(ImageDataModule):
    """Captioned images. Training draws one caption per image at random; in evaluation all captions are references.

    Batches, with B images and T tokens in the longest caption of a batch:

    - training: `(images (B, 3, H, W) float, tokens (B, T) int64, lengths (B,) int64)`;
    - validation, test: `(images, image_ids (B,) int64, references)`, a list of B lists of captions;
    - prediction: `(images, image_ids (B,), paths)`. The image ids are the numbers that end the file names, as in COCO,
      if every file has its own number; otherwise 0, 1, 2, ...

    Without `test_split`, the test images are `test` of a Karpathy file, else the validation images. `val_split=train`
    validates on the training images.

    Args:
        root: The folder of the data; `datamodules/captions/index.py` shows the layouts.
        annotations: `auto`, `karpathy`, `2017`, `2014`, or the path of a JSON file.
        img_size: Pixels, one number or (height, width).
        batch_size: Images per device in training.
        tokenizer: A SentencePiece `.model` file; `None` = `root/tokenizer.model` if it exists, else a tokenizer is
            trained on the training captions.
        tokenizer_vocab_size: Most tokens of a tokenizer that is trained here.
        tokenizer_type: `unigram` or `bpe`, for a tokenizer that is trained here.
        context_length: Most tokens of a caption, begin and end included; longer captions are cut, which is logged.
        augment: `false` = training images are transformed as in evaluation: their features can then be cached.
        scale: Area range of the random resized crop.
        hflip: Probability of a horizontal flip; 0, because captions say left and right.
        crop_pct: In evaluation, the centre crop's part of the resized image; 1, because captions describe all of it.
        kwargs: As for `ImageDataModule`.

    Raises:
        ValueError, FileNotFoundError: One line that names the path or option, what was found and what to do.
    """

    num_classes = 0
    class_names: list[str] = []

    def __init__(
        self,
        root: str,
        annotations: str = "auto",
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 128,
        tokenizer: str | None = None,
        tokenizer_vocab_size: int = 32000,
        tokenizer_type: str = "unigram",
        context_length: int = 64,
        augment: bool = True,
        scale: tuple[float, float] | None = (0.5, 1.0),
        hflip: float | None = 0.0,
        crop_pct: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root,
            img_size=img_size,
            batch_size=batch_size,
            scale=scale,
            hflip=hflip,
            crop_pct=crop_pct,
            # no caption is true of mixed or erased images
            random_erasing=0.0,
            mixup=None,
            cutmix=None,
            mix_prob=None,
            prefetch_factor=None,
            **kwargs,
        )
        self.annotations, self.augment = annotations, augment
        self.tokenizer_path, self.tokenizer_type = tokenizer, tokenizer_type
        self.tokenizer_vocab_size, self.context_length = tokenizer_vocab_size, context_length
        self._tokenizer: Tokenizer | None = None
        self._features: Features | None = None
        self._check_at_least(3, "context_length")
        if tokenizer_type not in MODEL_TYPES:
            raise ValueError(f"unknown data.tokenizer_type {tokenizer_type!r}: choose from {MODEL_TYPES}")

    # -- text --------------------------------------------------------------------------------------------------------

    def train_captions(self) -> list[str]:
        """Every caption of the training images, in the order of the annotations."""
        return self.dataset("train").captions()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that was set, else that of the file, else one trained on the training captions."""
        if self._tokenizer is None:
            path = self.tokenizer_path or self.root / "tokenizer.model"
            if self.tokenizer_path is not None or path.is_file():
                self._tokenizer = Tokenizer.from_file(path)
            else:
                texts = self.train_captions()
                self._tokenizer = train_tokenizer(texts, self.tokenizer_vocab_size, self.tokenizer_type)
                rank_zero_info(
                    f"a {self.tokenizer_type} tokenizer of {self._tokenizer.vocab_size} tokens was trained on "
                    f"{len(texts)} captions (at most {self.tokenizer_vocab_size} were asked for)"
                )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        if self.tokenizer_path is not None:  # the user named one: the two must agree
            Tokenizer.from_file(self.tokenizer_path).check_same(tokenizer)
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer; this may read or train it."""
        return self.tokenizer.vocab_size

    def _tell_of_cuts(self, texts: list[str]) -> None:
        """Logs how many captions are longer than the context, if any."""
        # A token has at least one character, and normalisation adds few: most captions need not be encoded.
        lengths = [len(self.tokenizer.encode(text)) for text in texts if len(text) + 8 > self.context_length]
        longer = [length for length in lengths if length > self.context_length]
        if longer:
            rank_zero_info(
                f"{len(longer)} of {len(texts)} captions are longer than data.context_length={self.context_length} "
                f"tokens and are cut; the longest has {max(longer)}"
            )

    # -- data sets ---------------------------------------------------------------------------------------------------

    def _read(self, split: str) -> list[Captioned]:
        layout = find_layout(self.root, self.annotations)
        images = read_split(self.root, layout, split)
        if excluded := self.excluded:
            images = [image for image in images if os.path.abspath(image.path) not in excluded]
        rank_zero_info(f"{len(images)} images with {sum(len(i.captions) for i in images)} captions: {split}, {layout}")
        return images

    def _setup_training(self) -> None:
        images = self._read(self.train_split)
        kept, held_out = self._hold_out(len(images))
        if held_out:
            self._datasets["val"] = self._captioned([images[place] for place in held_out])
        self._datasets["train"] = self._captioned([images[place] for place in kept], training=True)

    def _val_dataset(self) -> CaptionedImages:
        return self._captioned(self._read(self.val_split))

    def _test_dataset(self) -> CaptionedImages:
        layout = find_layout(self.root, self.annotations)
        split = self.test_split or ("test" if layout == "karpathy" or "dataset_" in Path(layout).name else None)
        if split is None or split == self.val_split:
            return self.dataset("val")
        return self._captioned(self._read(split))

    def _predict_dataset(self, paths: list[str]) -> NumberedToPredict:
        return NumberedToPredict(numbered(paths), self.pipeline(False).sample, self.img_size)

    def _captioned(self, images: list[Captioned], training: bool = False) -> CaptionedImages:
        return CaptionedImages(images, self.pipeline(training), self.skip_corrupt)

    # -- features of an encoder in place of the training images ------------------------------------------------------

    @property
    def encoding_key(self) -> str:
        """What the features of `encoding_dataloader` depend on, besides the encoder.

        Raises:
            ValueError: Training augments its images, so that they have no fixed features.
        """
        self._check_unaugmented()
        return repr((sorted(self.options.items(), key=str), self.img_size, self.dataset("train").images.samples))

    def _check_unaugmented(self) -> None:
        if self.augment:
            raise ValueError("features are cached only without augmentation: set data.augment=false")

    def use_features(self, features: Features) -> None:
        """From now on training batches carry features `(B, M, D)`, and no training image is read.

        Args:
            features: `features[i]` is `(M, D)` of training image `i`, in the order of `encoding_dataloader`.

        Raises:
            ValueError: Training augments its images.
        """
        self._check_unaugmented()
        self._features = features

    def encoding_dataloader(self) -> DataLoader:
        """Every training image once and in order, as in evaluation: `(images (B, 3, H, W), index (B,))`."""
        samples = [(path, (index,)) for path, index in self.dataset("train").images.samples]
        images = NumberedImages(samples, self.pipeline(False).sample, self.skip_corrupt)
        return self._evaluation_loader(images, CollateCaptions(self.pipeline(False)))

    # -- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches `(images (B, 3, H, W), tokens (B, T), lengths (B,))`."""
        dataset = self.dataset("train")
        self._tell_of_cuts(dataset.captions())
        dataset.tokenizer, dataset.context, dataset.features = self.tokenizer, self.context_length, self._features
        pipeline = None if self._features is not None else self.pipeline(True)
        return self._training_loader(dataset, CollateCaptions(pipeline, self.tokenizer))

    def val_dataloader(self) -> DataLoader:
        """Batches `(images (B, 3, H, W), image_ids (B,), references)`, every image once."""
        return self._evaluation_loader(self.dataset("val"), CollateCaptions(self.pipeline(False)))

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, over the test split."""
        return self._evaluation_loader(self.dataset("test"), CollateCaptions(self.pipeline(False)))

    def predict_dataloader(self) -> DataLoader:
        """Batches `(images (B, 3, H, W), image_ids (B,), paths)` in sorted order; paths is a list of B strings.

        An image that cannot be read is blank, whatever `skip_corrupt`; its path is an `Unreadable`, which says why.
        """
        return self._evaluation_loader(self.dataset("predict"), CollateCaptions(self.pipeline(False)))
