"""The module that an export writes: a model at given compressed sizes, with or without its preprocessing.

Letters: B batch, C classes, (Y, X) pixels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookupvit.checks import check_choice
from lookupvit.grid import Size

PROBABILITIES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing fused into a program: it takes uint8 pixels and returns probabilities.

    Attributes:
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        probabilities: "softmax", or "sigmoid" for a model that was trained with the sigmoid loss.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    probabilities: str = "softmax"

    def __post_init__(self):
        check_choice("probabilities", self.probabilities, PROBABILITIES)
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: give one of each per channel, and std above 0")


class Program(nn.Module):
    """The module that is exported: a model at given compressed sizes, in evaluation mode.

    Args:
        model: A model of the zoo, which is copied.
        sizes: Compressed sizes; None for the model's own. With several, `forward` takes the index of one.
        head: The only head to run; None for the model's own choice.
        preprocessing: Fused preprocessing; with None the program takes normalised images and returns logits.
        path: Order of the cross-attention's products, see `FastCrossAttention`.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[Size] | None = None,
        head: str | None = None,
        preprocessing: Preprocessing | None = None,
        path: str = "auto",
    ):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.sizes: list[Size | None] = [None]
        self.head = head
        if model.compressed_size is not None:
            self.model.set_path(path)
            self.sizes = [tuple(size) for size in sizes or [model.compressed_size]]
        self.preprocessing = preprocessing
        if preprocessing is not None:
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(-1, 1, 1))  # (C, 1, 1)

    def forward(self, images: Tensor, size: Tensor | None = None) -> Tensor:
        """Images to logits `(B, C)`, or to probabilities with fused preprocessing.

        Args:
            images: `(B, 3, Y, X)` normalised; with fused preprocessing uint8 `(B, Y, X, 3)`.
            size: int64 scalar, the index of a compressed size, where there are several.
        """
        return self._after(self._at(self._before(images), size, 0))

    def direct(self, images: Tensor, index: int = 0) -> Tensor:
        """`forward` at the size of this index, without a choice in the program, to compare the program with."""
        return self._after(self._model(self._before(images), index))

    def _before(self, images: Tensor) -> Tensor:
        if self.preprocessing is None:
            return images
        return (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std  # (B, Y, X, 3) -> (B, 3, Y, X)

    def _after(self, logits: Tensor) -> Tensor:
        if self.preprocessing is None:
            return logits
        return logits.softmax(dim=1) if self.preprocessing.probabilities == "softmax" else logits.sigmoid()

    def _model(self, images: Tensor, index: int) -> Tensor:
        if self.sizes[index] is None:
            return self.model(images)
        return self.model(images, compressed_size=self.sizes[index], head=self.head)

    def _at(self, images: Tensor, size: Tensor | None, index: int) -> Tensor:
        """The model at the size that `size` chooses among those from `index` on; only that size is computed."""
        if index == len(self.sizes) - 1:
            return self._model(images, index)
        chosen, others = (lambda x: self._model(x, index)), (lambda x: self._at(x, size, index + 1))
        return torch.cond(size == index, chosen, others, (images,))

    def example(self, img_size: tuple[int, ...], batch: int, index: int = 0) -> tuple[Tensor, ...]:
        """Random arguments of `forward`."""
        random = torch.Generator().manual_seed(batch)
        shape = (*([self.model.num_frames] if hasattr(self.model, "num_frames") else []), *img_size)
        if self.preprocessing is not None:
            images = torch.randint(0, 256, (batch, *shape, 3), dtype=torch.uint8, generator=random)
        else:
            images = torch.randn(batch, 3, *shape, generator=random)
        return (images, torch.tensor(index)) if len(self.sizes) > 1 else (images,)
