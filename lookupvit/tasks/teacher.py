"""A frozen model that another one learns from. Not in the paper: it speeds up a warm start.

Letters: B batch, C classes, D embed_dim.
"""

from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from lookupvit.checkpoints.contents import read_contents
from lookupvit.checkpoints.pixels import Pixels, pixels_of, timm_pixels
from lookupvit.grid import Tokens
from lookupvit.interop.load_model import load_model
from lookupvit.tasks.belonging import say
from lookupvit.tasks.losses import pooled


class Lesson(NamedTuple):
    """A teacher's logits `(B, C)` of a batch, and its pooled, normalised tokens `(B, D)`."""

    logits: Tensor
    pooled: Tensor


class Teacher:
    """A model in evaluation mode, without gradients. It is not an `nn.Module`: no checkpoint or optimiser contains it.

    Args:
        source: A checkpoint that `lookupvit fit` wrote, a folder of `save_pretrained`, or the name of a timm ViT, whose
            pretrained weights timm fetches.
        num_classes: Number of classes that it has to have.
        img_size: (height, width) of the images that it will see, in pixels.
        pixels: How those images are normalised. Where the teacher was trained with another mean and standard deviation,
            they are normalised again for it. None leaves them as they are.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a timm model.
        ValueError: If the model has other classes, cannot be fetched, or is no image classifier; in one line.
    """

    def __init__(
        self, source: str | Path, num_classes: int, img_size: tuple[int, int], pixels: Pixels | None = None
    ) -> None:
        model, own = _load(source, img_size)
        self.model = model.eval().requires_grad_(False)
        different = pixels is not None and own is not None and not own.same_values(pixels)
        self.renormalise = pixels.to(own) if different else None
        if pixels is not None and own is None:
            say(f"Warning: teacher {source} does not say how its images were normalised: it gets them with {pixels}")
        if self.model.num_classes != num_classes:
            raise ValueError(
                f"teacher {source} has {self.model.num_classes} classes, the data {num_classes}: fine-tune it on these "
                "data first (lookupvit fit), and give that checkpoint"
            )
        self.width = self.model.embed_dim

    def to(self, device: torch.device) -> None:
        """Moves the teacher to a device."""
        self.model.to(device)
        if self.renormalise is not None:
            self.renormalise = tuple(value.to(device) for value in self.renormalise)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Lesson:
        """Logits and pooled tokens of images `(B, 3, H, W)`."""
        if self.renormalise is not None:
            scale, shift = self.renormalise
            images = images * scale + shift  # (B, C, H, W), (C, 1, 1)
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features)
        if isinstance(features, Tokens):
            return Lesson(logits, pooled(features))
        return Lesson(logits, self.model.pool(features) if hasattr(self.model, "pool") else features.mean(dim=1))


def _load(source: str | Path, img_size: tuple[int, int]) -> tuple[nn.Module, Pixels | None]:
    if Path(source).expanduser().exists():
        model = load_model(source, img_size=img_size)
        if hasattr(model, "num_frames"):
            raise ValueError(f"teacher {source} is a video model: give the checkpoint of an image classifier")
        return model, pixels_of(read_contents(source))
    if not timm.is_model(str(source).partition(".")[0]):
        raise FileNotFoundError(
            f"teacher {str(source)!r} is neither a checkpoint of lookupvit fit nor a model of timm's: give a file, or "
            "a name such as vit_base_patch16_224.augreg_in21k_ft_in1k"
        )
    try:
        return timm.create_model(str(source), pretrained=True, img_size=img_size), timm_pixels(str(source))
    except Exception as error:  # the network's errors are of many kinds, and not every timm model takes an img_size
        raise ValueError(
            f"timm could not give {source} with its weights ({type(error).__name__}): give a checkpoint instead"
        ) from error
