"""How images are prepared for a model, and how to change from one normalisation to another.

Letters: B images, C channels, (Y, X) pixels, D embed_dim, (y, x) patch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit.trust import parameter

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Pixels:
    """How images are prepared for a model in evaluation, apart from the image size.

    Attributes:
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        interpolation: One of `INTERPOLATIONS`; None if it is not known.
        crop_pct: Fraction of the resized image's side that the centre crop keeps; None if it is not known.

    Raises:
        ValueError: For values of another type or out of range, in one line.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str | None = None
    crop_pct: float | None = None

    def __post_init__(self):
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
                raise ValueError(f"its {name} is not three numbers: {str(values)[:80]!r}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.std) <= 0:
            raise ValueError(f"its std {self.std} is not above 0")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"its interpolation {str(self.interpolation)[:80]!r} is none of {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_pct is not None and not (_is_number(self.crop_pct) and 0 < self.crop_pct <= 1):
            raise ValueError(f"its crop_pct {str(self.crop_pct)[:80]!r} is not in (0, 1]")

    @classmethod
    def of_data(cls, data: Any) -> "Pixels | None":
        """The preparation by a DataModule; None if it does not normalise."""
        if getattr(data, "mean", None) is None or getattr(data, "std", None) is None:
            return None
        options = getattr(data, "options", {})
        return cls(tuple(data.mean), tuple(data.std), options.get("interpolation"), options.get("crop_pct"))

    @classmethod
    def of_processor(cls, processor: Mapping[str, Any]) -> "Pixels | None":
        """The preparation in a `preprocessor_config.json` of transformers; None if it does not normalise."""
        if "image_mean" not in processor or "image_std" not in processor:
            return None
        names = {number: name for name, number in RESAMPLE.items()}
        resample, size, crop = (processor.get(key) for key in ("resample", "size", "crop_size"))
        edge = size.get("shortest_edge") if isinstance(size, dict) else None
        side = crop.get("height") if isinstance(crop, dict) and processor.get("do_center_crop") else None
        known = _is_number(edge) and _is_number(side) and 0 < side <= edge
        interpolation = names.get(resample) if isinstance(resample, int) else None
        return cls(processor["image_mean"], processor["image_std"], interpolation, side / edge if known else None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without values that are not known."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return values | {"mean": list(self.mean), "std": list(self.std)}

    def same_values(self, other: "Pixels") -> bool:
        """Whether both have the same normalisation; resize and crop may differ."""
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=True)
        return all(abs(a - b) < 1e-6 for a, b in pairs)

    def __str__(self) -> str:
        return f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"

    def to(self, other: "Pixels") -> tuple[Tensor, Tensor]:
        """Scale and shift, each `(C, 1, 1)`, that turn this normalisation into that of `other`.

        `x' = x * scale + shift` is `(x * std + mean - other.mean) / other.std`.
        """
        mean, std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            for values in (self.mean, self.std, other.mean, other.std)
        )
        return (std / new_std).float(), ((mean - new_mean) / new_std).float()


@torch.no_grad()
def fold_normalisation(model: nn.Module, data: Pixels, own: Pixels) -> None:
    """Changes a model's patch embedding so that it takes images with the data's normalisation instead of its own.

    This is exact, because the embedding is linear and has no padding: with `x' = a x + b` in each channel, the kernel
    `W (D, C, y, x)` becomes `a W`, and `sum of b W` is added to the bias. Nothing else has to change or to be stored.

    Raises:
        ValueError: For a model whose patch embedding has no bias.
    """
    projection = model.vit.patch_embed.proj if hasattr(model, "vit") else model.embed.proj
    if projection.bias is None:
        raise ValueError("the patch embedding has no bias that could take up another normalisation")
    scale, shift = (value.to(projection.weight) for value in data.to(own))
    projection.bias += (projection.weight * shift).sum(dim=(1, 2, 3))  # (D, C, y, x) -> (D,)
    projection.weight *= scale


def pixels_of(contents: Any) -> Pixels | None:
    """How the images of a file's model were prepared; older checkpoints have only their data's configuration for it.

    Args:
        contents: Result of `read_contents`.
    """
    if contents.pixels is not None or not contents.data:
        return contents.pixels
    import datamodules  # only for checkpoints from before the key "preprocessing"

    name = str(contents.data.get("class_path", "")).rpartition(".")[2]
    if name not in datamodules.__all__:
        return None
    cls, given = getattr(datamodules, name), contents.data.get("init_args") or {}
    try:
        return Pixels.of_data(cls(**{key: value for key, value in given.items() if takes(cls, key)}))
    except (TypeError, ValueError, OSError):  # options of another version of the class
        return None


def timm_pixels(name: str) -> Pixels | None:
    """The preparation that timm states for pretrained weights; None if timm does not know the name."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return None if known is None else Pixels(known.mean, known.std, known.interpolation, known.crop_pct)


def known_options(contents: Any, cls: type) -> dict[str, Any]:
    """How a file's images were prepared, as those arguments that a DataModule's class takes."""
    pixels = pixels_of(contents)
    known = {} if pixels is None else pixels.as_dict()
    if contents.img_size is not None:
        known["img_size"] = list(contents.img_size)
    return {key: value for key, value in known.items() if takes(cls, key)}


def takes(cls: type, name: str) -> bool:
    """Whether the constructor of a class, or of one of its parents, has an argument of this name."""
    return parameter(cls, name) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
