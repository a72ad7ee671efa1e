"""RandAugment as its users published it: four lists of operations, and what a magnitude means in each of them.

`torchvision` is torchvision's own. No library has the others for tensors and clips, with draws from torch's generator
(which makes a resumed run exact) and with magnitudes beyond 10:

* `big_vision`, used by AugReg: 16 operations, and magnitudes beyond 10 go on growing (15 rotates by 45 degrees);
* `timm`, DeiT's `rand-m9-mstd0.5-inc1`: 15 operations, each with a probability, and with a magnitude that is drawn
  around the given one;
* `scenic`, used by ViViT: the operations of `big_vision` that move no pixel, and one that does nothing.

Letters: `H, W` height and width; `...` stands for the `T` frames of a clip, all changed alike, or for nothing.
"""

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

_POINTWISE = [
    "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd",
    "Color", "Contrast", "Brightness", "Sharpness",
]  # fmt: skip
_MOVING = ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
OPERATIONS = {
    "big_vision": [*_POINTWISE, *_MOVING, "Cutout"],
    "timm": [*_POINTWISE, *_MOVING],
    "scenic": [*_POINTWISE, "Cutout", "Identity"],
}
# The options of each policy, and their defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "torchvision": {"policy": "torchvision", "num_ops": 2, "magnitude": 9, "num_magnitude_bins": 31},
    "big_vision": {"policy": "big_vision", "num_ops": 2, "magnitude": 15},
    "timm": {"policy": "timm", "num_ops": 2, "magnitude": 9, "magnitude_std": 0.5, "prob": 0.5},
    "scenic": {"policy": "scenic", "num_ops": 2, "magnitude": 20},
}
_MOST = {"big_vision": 30, "timm": 10, "scenic": 30}  # magnitude; timm stops at 10


def choose(kind: str, name: Any, valid: Any) -> Any:
    """`name` if it is one of the valid ones, else a `ValueError` that names the nearest of them."""
    if name not in valid:
        close = difflib.get_close_matches(str(name), list(valid), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown {kind} {name!r}: {hint}valid: {', '.join(valid)}")
    return name


def rand_augment_options(value: Any, base: dict[str, Any] | None) -> dict[str, Any]:
    """All options of RandAugment.

    Args:
        value: Mapping of `policy`, `num_ops`, `magnitude`, and for torchvision `num_magnitude_bins`, for timm
            `magnitude_std` and `prob`. What it leaves out is `base`'s, where it is of the same policy, or the
            policy's default. Without a policy it is torchvision's where `num_magnitude_bins` is given.
        base: A recipe's options; None: it has none.

    Raises:
        ValueError: One line, for an unknown option or a value out of range.
    """
    if not isinstance(value, dict):
        raise ValueError(f"data.rand_augment is a mapping such as {{num_ops: 2, magnitude: 9}} or false, got {value!r}")
    base = _DEFAULTS["torchvision"] if base is None or "num_magnitude_bins" in value else base
    policy = choose("rand_augment policy", value.get("policy", base["policy"]), _DEFAULTS)
    for key in value:
        choose("rand_augment option", key, _DEFAULTS[policy])
    options = (base if base["policy"] == policy else _DEFAULTS[policy]) | value
    most = _MOST.get(policy, options.get("num_magnitude_bins", 0) - 1)
    if not 0 <= options["magnitude"] <= most:
        limit = f"num_magnitude_bins of {most + 1}" if policy == "torchvision" else f"policy {policy}"
        raise ValueError(
            f"data.rand_augment.magnitude is {options['magnitude']}, but {limit} allows 0 to {most}; "
            "change one of the two"
        )
    if not (0 <= options.get("prob", 1) <= 1 and options.get("magnitude_std", 0) >= 0):
        raise ValueError(
            f"data.rand_augment: prob {options['prob']} must lie in [0, 1], and magnitude_std "
            f"{options['magnitude_std']} must not be negative"
        )
    return options


def rand_augment(options: dict[str, Any], fill: list[int]) -> Callable[[Tensor], Tensor]:
    """The transform of uint8 images `(3, H, W)` or clips `(T, 3, H, W)`.

    Args:
        options: From `rand_augment_options`.
        fill: Colour of what a rotation or a shear uncovers.
    """
    policy, rest = options["policy"], {key: value for key, value in options.items() if key != "policy"}
    return v2.RandAugment(**rest, fill=fill) if policy == "torchvision" else RandAugment(policy, **rest, fill=fill)


class RandAugment:
    """Some operations one after the other, each drawn from all with equal chance.

    Args:
        policy: A name of `OPERATIONS`.
        num_ops: Operations for each image.
        magnitude: 10 is the end of the original scale.
        magnitude_std: Deviation of a normal distribution that each operation's magnitude is drawn from.
        prob: Probability that a drawn operation is carried out.
        fill: Colour, 0 to 255, of uncovered pixels.
    """

    def __init__(
        self,
        policy: str,
        num_ops: int,
        magnitude: float,
        magnitude_std: float = 0.0,
        prob: float = 1.0,
        fill: list[int] | None = None,
    ) -> None:
        self.policy, self.num_ops, self.magnitude = policy, num_ops, magnitude
        self.magnitude_std, self.prob, self.fill = magnitude_std, prob, fill or [128] * 3

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 `(..., 3, H, W)` -> the same shape."""
        names = OPERATIONS[self.policy]
        for _ in range(self.num_ops):
            name = names[int(torch.randint(len(names), ()))]
            if torch.rand(()) >= self.prob:
                continue
            magnitude = self.magnitude
            if self.magnitude_std:
                magnitude = min(max(magnitude + self.magnitude_std * float(torch.randn(())), 0), _MOST[self.policy])
            image = self.operate(name, image, magnitude / 10, 1 if torch.rand(()) < 0.5 else -1)
        return image

    def operate(self, name: str, image: Tensor, level: float, sign: int) -> Tensor:
        """One operation on uint8 `(..., 3, H, W)`.

        Args:
            name: Name of the operation.
            image: The image or clip to change.
            level: The magnitude over 10.
            sign: 1 or -1: the direction of a movement, and with timm whether a factor is above or below one.
        """
        increasing = self.policy == "timm"
        factor = max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level
        match name:
            case "AutoContrast":
                return F.autocontrast(image)
            case "Equalize":
                return F.equalize(image)
            case "Invert":
                return F.invert(image)
            case "Posterize":  # TensorFlow's shift by 8 bits shifts by 7
                bits = 4 - int(4 * level) if increasing else max(int(4 * level), 1)
                return F.posterize(image, min(bits, 8))
            case "Solarize":
                threshold = min(256, int(256 * level))
                threshold = 256 - threshold if increasing else threshold
                return image if threshold > 255 else F.solarize(image, threshold)
            case "SolarizeAdd":
                add = min(128, int(110 * level)) if increasing else int(110 * level)
                return torch.where(image < 128, (image.int() + add).clamp(max=255).to(torch.uint8), image)
            case "Color":
                return F.adjust_saturation(image, factor)
            case "Contrast":
                return F.adjust_contrast(image, factor) if increasing else _contrast(image, factor)
            case "Brightness":
                return F.adjust_brightness(image, factor)
            case "Sharpness":
                return F.adjust_sharpness(image, factor)
            case "Cutout":
                return self._cutout(image, int(40 * level))
            case "Rotate":
                return F.rotate(image, sign * 30 * level, interpolation=self._mode, fill=self.fill)
            case "ShearX" | "ShearY":
                degrees = math.degrees(math.atan(sign * 0.3 * level))
                return self._affine(image, shear=[degrees, 0.0] if name == "ShearX" else [0.0, degrees])
            case "TranslateX" | "TranslateY":
                height, width = image.shape[-2:]
                side = width if name == "TranslateX" else height
                pixels = sign * level * (0.45 * side if increasing else 100)
                return self._affine(image, translate=[pixels, 0.0] if name == "TranslateX" else [0.0, pixels])
        return image

    @property
    def _mode(self) -> InterpolationMode:
        # DeiT's is bicubic, which torchvision has for PIL images alone
        return InterpolationMode.BILINEAR if self.policy == "timm" else InterpolationMode.NEAREST

    def _affine(self, image: Tensor, translate: list[float] | None = None, shear: list[float] | None = None) -> Tensor:
        move = {"translate": translate or [0.0, 0.0], "shear": shear or [0.0, 0.0], "angle": 0.0, "scale": 1.0}
        return F.affine(image, **move, interpolation=self._mode, fill=self.fill, center=[0.0, 0.0])

    def _cutout(self, image: Tensor, reach: int) -> Tensor:
        """Erases a square of side 2 `reach` around a random pixel: black for ViViT's policy, grey for the others."""
        height, width = image.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image = image.clone()
        image[..., max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = 0 if self.policy == "scenic" else 128
        return image


def _contrast(image: Tensor, factor: float) -> Tensor:
    """As in TensorFlow's policies: around (number of pixels) / 256, at most white, instead of around the mean."""
    grey = min(255, image.numel() // 3 // 256)
    return (grey + factor * (image.float() - grey)).clamp(0, 255).to(torch.uint8)
