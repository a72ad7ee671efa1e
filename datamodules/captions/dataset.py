"""Images with captions as samples and batches.

Letters: B batch, H, W height and width, T tokens of the longest caption of a batch, M, D tokens and width of features.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.captions.index import Captioned
from datamodules.captions.tokenizer import Tokenizer
from datamodules.images.collate import without_corrupt
from datamodules.images.folder import ImagesToPredict, LabelledImages
from datamodules.images.transforms import Pipeline
from datamodules.loading.texts import Texts


class Features(Protocol):
    """What an encoder made of each training image."""

    def __getitem__(self, index: int) -> Tensor:
        """`(M, D)` of one image."""


class CaptionedImages(Dataset):
    """Images with their captions; what a sample is depends on the task of the data set.

    Args:
        images: From `index.read_split`.
        pipeline: Transform of the images; a sample has what its `sample` part makes.
        skip_corrupt: An image that cannot be decoded becomes None, with a warning, in place of an error.

    Attributes:
        tokenizer: For training: a sample is then `(image, token numbers of one of its captions, drawn at random)`;
            None: a sample is `(image, image_id, captions)`.
        context: Most tokens of a caption.
        features: Where set, they stand in for the images, which are not read.
    """

    def __init__(self, images: Sequence[Captioned], pipeline: Pipeline, skip_corrupt: bool = False) -> None:
        self.ids = torch.tensor([image.image_id for image in images])
        self.texts = Texts([image.captions for image in images])
        self.images = LabelledImages(
            [(image.path, index) for index, image in enumerate(images)], pipeline.sample, skip_corrupt
        )
        self.tokenizer: Tokenizer | None = None
        self.context: int | None = None
        self.features: Features | None = None

    @property
    def skipped(self) -> list[str]:
        """Paths of the corrupt images left out so far."""
        return self.images.skipped

    def captions(self) -> list[str]:
        """Every caption, in order."""
        return [text for index in range(len(self)) for text in self.texts.of(index)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...] | None:
        if self.features is not None:
            image = self.features[index]
        else:
            sample = self.images[index]
            if sample is None:
                return None
            image = sample[0]
        if self.tokenizer is None:
            return image, int(self.ids[index]), self.texts.of(index)
        number = int(torch.randint(self.texts.count(index), ()))
        return image, self.tokenizer.cut(self.tokenizer.encode(self.texts.get(index, number)), self.context)


class CollateCaptions:
    """Samples -> one batch; the `None` of images left out is dropped.

    Args:
        pipeline: Makes the batch of the images; None: they are features, and are stacked.
        tokenizer: Of training batches `(images (B, 3, H, W), tokens (B, T), lengths (B,))`. None: batches are
            `(images, numbers (B,), ...)`, with a list for each further item of a sample.
    """

    def __init__(self, pipeline: Pipeline | None, tokenizer: Tokenizer | None = None) -> None:
        self.pipeline, self.tokenizer = pipeline, tokenizer

    def __call__(self, samples: Sequence[tuple[Any, ...] | None]) -> tuple[Any, ...]:
        """Samples to a batch; `ValueError` if nothing is left of them."""
        images, *items = (list(column) for column in zip(*without_corrupt(samples), strict=True))
        batch = torch.stack(images) if self.pipeline is None else self.pipeline.stack(images)
        if self.tokenizer is not None:
            return (batch, *self.tokenizer.pad(items[0]))
        return (batch, torch.tensor(items[0]), *items[1:])


class NumberedImages(LabelledImages):
    """Images `(image, number)` or, with further items, `(image, number, ...)`."""

    def __getitem__(self, index: int) -> tuple[Any, ...] | None:
        sample = super().__getitem__(index)
        return None if sample is None else (sample[0], *sample[1])


class NumberedToPredict(NumberedImages, ImagesToPredict):
    """Images `(image, number, path)`, those that cannot be read among them, as `ImagesToPredict` has them."""


def numbered(paths: Sequence[str]) -> list[tuple[str, tuple[int, str]]]:
    """Samples of `NumberedImages`: each path with its number and itself.

    A number is the one that ends the file name, as in COCO, if every file has its own; otherwise they are 0, 1, 2, ...
    """
    matches = [re.search(r"(\d+)$", Path(path).stem) for path in paths]
    ids = [int(match[1]) for match in matches if match]
    if len(set(ids)) < len(paths):
        ids = list(range(len(paths)))
    return [(path, (number, path)) for path, number in zip(paths, ids, strict=True)]
