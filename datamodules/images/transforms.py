"""Image augmentation as plain data: named recipes, options that override them, torchvision transforms built from both.

Everything works on uint8 tensors `(3, H, W)`; the conversion to float and the normalisation come last.
Letters: `B` batch, `C` classes, `H, W` height and width.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from datamodules.images.rand_augment import choose, rand_augment, rand_augment_options

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# Every option there is. "light" is this: crop and flip.
_LIGHT: dict[str, Any] = {
    "scale": (0.08, 1.0),  # area of the random crop, as a part of the image
    "ratio": (3 / 4, 4 / 3),  # aspect ratio of the random crop
    "interpolation": "bicubic",
    "hflip": 0.5,  # probability
    "crop_padding": None,  # pixels: pad by so much and crop, in place of the random resized crop (small images)
    "rand_augment": None,  # from `rand_augment_options`, or None
    "color_jitter": 0.0,  # strength of brightness, contrast and saturation; or three or four, the fourth of the hue
    "color_jitter_prob": 1.0,  # probability of the colour jitter
    "grayscale_prob": 0.0,  # probability of no colour at all
    "random_erasing": 0.0,  # probability
    "mixup": 0.0,  # alpha of the Beta distribution, 0 = off
    "cutmix": 0.0,  # alpha, 0 = off
    "mix_prob": 1.0,  # probability that a batch is mixed at all
    "crop_pct": 0.875,  # evaluation: the centre crop's part of the resized image (224 of 256)
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}
RECIPES: dict[str, dict[str, Any]] = {
    "light": _LIGHT,
    # DeiT: rand-m9-mstd0.5-inc1. Its settings list a colour jitter of 0.4, but timm's loader, which it trains with,
    # switches jitter off beside RandAugment.
    "deit": _LIGHT
    | {
        "rand_augment": {"policy": "timm", "num_ops": 2, "magnitude": 9, "magnitude_std": 0.5, "prob": 0.5},
        "random_erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}

# AugReg's levels (big_vision, configs/vit_i1k.py): mixup and the magnitude of RandAugment; None is no RandAugment,
# while 0 still draws operations. "augreg" is the level that AugReg takes for S/16 and larger on ImageNet-1k.
AUGREG = {
    "none": (0.0, None),
    "light1": (0.0, 0),
    "light2": (0.2, 10),
    "medium1": (0.2, 15),
    "medium2": (0.5, 15),
    "strong1": (0.5, 20),
    "strong2": (0.8, 20),
}
for _level, (_mixup, _magnitude) in AUGREG.items():
    RECIPES["augreg" if _level == "medium2" else f"augreg_{_level}"] = _LIGHT | {
        "scale": (0.05, 1.0),
        "interpolation": "bilinear",
        "rand_augment": None if _magnitude is None else {"policy": "big_vision", "num_ops": 2, "magnitude": _magnitude},
        "mixup": _mixup,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


def transform_options(recipe: str = "light", **overrides: Any) -> dict[str, Any]:
    """All options of a recipe, with single options replaced.

    Args:
        recipe: A name of `RECIPES`: `light`, `deit`, `augreg` and its levels.
        overrides: Any option of the recipe. `None` keeps the recipe's value; `rand_augment=False` and
            `crop_padding=0` switch off; a `rand_augment` mapping changes only the keys it names.

    Returns:
        A new dict with every option.

    Raises:
        ValueError: An unknown recipe, option or interpolation, or a value out of range.
    """
    options = dict(RECIPES[choose("recipe", recipe, RECIPES)])
    for name, value in overrides.items():
        choose("transform option", name, options)
        if value is None:
            continue
        if name == "rand_augment" and value is not False:
            value = rand_augment_options(value, options["rand_augment"])
        options[name] = value or None if name in ("rand_augment", "crop_padding") else value
    choose("interpolation", options["interpolation"], [mode.value for mode in v2.InterpolationMode])
    for name in ("hflip", "random_erasing", "mix_prob", "color_jitter_prob", "grayscale_prob"):
        if not 0 <= options[name] <= 1:
            raise ValueError(f"data.{name} is a probability, got {options[name]}; give a number from 0 to 1")
    jitter = _jitter(options["color_jitter"])
    if len(jitter) not in (3, 4) or (len(jitter) == 4 and jitter[3] > 0.5):
        raise ValueError(
            f"data.color_jitter is one number, or three or four, the fourth (hue) at most 0.5, got "
            f"{options['color_jitter']}"
        )
    for name, least in (("mixup", options["mixup"]), ("cutmix", options["cutmix"]), ("color_jitter", min(jitter))):
        if least < 0:
            raise ValueError(f"data.{name} must not be negative, got {options[name]}; 0 switches it off")
    if not 0 < options["crop_pct"] <= 1:
        raise ValueError(f"data.crop_pct must lie in (0, 1], got {options['crop_pct']}; the usual value is 0.875")
    for name, length in {"scale": 2, "ratio": 2, "mean": 3, "std": 3}.items():
        options[name] = tuple(float(value) for value in options[name])
        if len(options[name]) != length:
            raise ValueError(f"data.{name} needs {length} numbers, got {options[name]}")
    return options


class ResizeToCover(v2.Transform):
    """Resize, keeping the aspect ratio, to the smallest image that covers `size`.

    For a square this is torchvision's resize of the shorter side; for any other shape that would not always cover.
    """

    def __init__(self, size: tuple[int, int], interpolation: v2.InterpolationMode) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The size of the resized image (called by torchvision's `Transform`)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = max(self.size[0] / height, self.size[1] / width)
        # max(): the product may fall one short of the side that it was made from
        return {"size": [max(round(height * factor), self.size[0]), max(round(width * factor), self.size[1])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image (called by torchvision's `Transform`)."""
        return v2.functional.resize(inpt, params["size"], interpolation=self.interpolation, antialias=True)


def _resize(size: tuple[int, int], interpolation: v2.InterpolationMode) -> v2.Transform:
    if size[0] == size[1]:
        return v2.Resize(size[0], interpolation=interpolation, antialias=True)
    return ResizeToCover(size, interpolation)


class PadCropFlip:
    """Pads by zeros, crops a random window of `size`, and flips it with a probability.

    The same as v2's `RandomCrop(size, padding)` and `RandomHorizontalFlip`. Those spend about three times as long on
    drawing their parameters as on changing a small image.
    """

    def __init__(self, size: tuple[int, int], padding: int, hflip: float) -> None:
        self.size, self.padding, self.hflip = size, padding, hflip

    def __call__(self, image: Tensor) -> Tensor:
        """`(3, H, W)` at least as large as `size` less twice the padding -> `(3, *size)`."""
        (height, width), p = self.size, self.padding
        padded = torch.nn.functional.pad(image, (p, p, p, p))
        free_rows, free_columns = padded.shape[1] - height, padded.shape[2] - width
        place = torch.rand(3).tolist()
        top, left = int(place[0] * (free_rows + 1)), int(place[1] * (free_columns + 1))
        window = padded[:, top : top + height, left : left + width]
        return window.flip(-1) if place[2] < self.hflip else window


class Pipeline:
    """The steps for each image, and those for a whole batch, which cost less per image there.

    Called with one image it does both. Attributes:
        sample: uint8 `(3, H, W)` -> uint8 `(3, *img_size)`, or None where `resize` does it all.
        resize: a transform without randomness; images of one size go through it as one batch.
        options: from `transform_options`: normalisation and erasing.
    """

    # Images with this many pixels or more are resized one by one: a batch of them does not fit the processor's cache.
    _LARGE = 128 * 128

    def __init__(self, sample: v2.Compose | None, resize: v2.Compose | None, options: dict[str, Any]) -> None:
        self.sample, self.resize = sample, resize
        self.mean, self.std = list(options["mean"]), list(options["std"])
        # After the normalisation, because each erased pixel becomes unit noise, as in DeiT.
        erase = options["random_erasing"]
        self.erase = v2.RandomErasing(erase, value="random") if erase else None

    def stack(self, images: list[Tensor]) -> Tensor:
        """Images as `sample` left them, uint8 -> normalised float `(B, 3, *img_size)`."""
        if self.resize is not None:
            first = images[0].shape
            if first[1] * first[2] < self._LARGE and all(image.shape == first for image in images):
                images = self.resize(torch.stack(images))  # (B, 3, H, W)
            else:
                images = [self.resize(image) for image in images]
        batch = images if isinstance(images, Tensor) else torch.stack(images)
        batch = v2.functional.to_dtype(batch, torch.float32, scale=True)
        batch = v2.functional.normalize(batch, self.mean, self.std, inplace=True)
        return batch if self.erase is None else torch.stack([self.erase(image) for image in batch])

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 `(3, H, W)` -> normalised float `(3, *img_size)`."""
        return self.stack([image if self.sample is None else self.sample(image)])[0]


def _jitter(value: Any) -> tuple[float, ...]:
    """Brightness, contrast, saturation and perhaps hue."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def change_colours(options: dict[str, Any]) -> list[Any]:
    """RandAugment, colour jitter and the loss of colour, on uint8 images `(3, H, W)` or clips `(T, 3, H, W)`."""
    steps: list[Any] = []
    if options["rand_augment"]:
        # what a rotation or a shear uncovers gets the mean colour
        steps.append(rand_augment(options["rand_augment"], [round(255 * value) for value in options["mean"]]))
    if any(_jitter(options["color_jitter"])):
        jitter = v2.ColorJitter(*_jitter(options["color_jitter"]))
        prob = options["color_jitter_prob"]
        steps.append(jitter if prob == 1 else v2.RandomApply([jitter], prob))
    if options["grayscale_prob"]:
        # not v2.RandomGrayscale, which leaves clips as they are
        steps.append(v2.RandomApply([v2.ColorJitter(saturation=(0, 0))], options["grayscale_prob"]))
    return steps


def random_resized_crop(img_size: tuple[int, int], options: dict[str, Any]) -> v2.Transform:
    """A random part of an image or a clip, resized to `img_size`."""
    mode = v2.InterpolationMode(options["interpolation"])
    return v2.RandomResizedCrop(img_size, options["scale"], options["ratio"], interpolation=mode, antialias=True)


def train_transform(img_size: tuple[int, int], options: dict[str, Any]) -> Pipeline:
    """uint8 `(3, H, W)` of any size -> augmented, normalised float `(3, *img_size)`.

    Args:
        img_size: (height, width) in pixels.
        options: From `transform_options`.
    """
    if options["crop_padding"]:
        resize = _resize(img_size, v2.InterpolationMode(options["interpolation"]))
        steps = [resize, PadCropFlip(img_size, options["crop_padding"], options["hflip"])]
    else:
        steps = [random_resized_crop(img_size, options)]
        if options["hflip"]:
            steps.append(v2.RandomHorizontalFlip(options["hflip"]))
    return Pipeline(v2.Compose(steps + change_colours(options)), None, options)


def eval_transform(img_size: tuple[int, int], options: dict[str, Any]) -> Pipeline:
    """uint8 `(3, H, W)` of any size -> the normalised centre crop `(3, *img_size)`; nothing is random.

    Args:
        img_size: (height, width) in pixels.
        options: From `transform_options`.
    """
    height, width = (round(side / options["crop_pct"]) for side in img_size)
    resize = _resize((height, width), v2.InterpolationMode(options["interpolation"]))
    return Pipeline(None, v2.Compose([resize, v2.CenterCrop(img_size)]), options | {"random_erasing": 0.0})
