"""Image augmentation as plain data: named recipes, options that override them, torchvision transforms built from both.

Everything works on uint8 tensors ``(3, H, W)``; the conversion to float and the normalisation come last.
Letters: ``B`` batch, ``C`` classes, ``H, W`` height and width.
"""

import difflib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# Every option there is. "light" is this: crop and flip.
_LIGHT: dict[str, Any] = {
    "scale": (0.08, 1.0),  # area of the random crop, as a part of the image
    "ratio": (3 / 4, 4 / 3),  # aspect ratio of the random crop
    "interpolation": "bicubic",
    "hflip": 0.5,  # probability
    "crop_padding": None,  # pixels: pad by so much and crop, in place of the random resized crop (small images)
    "rand_augment": None,  # {"num_ops", "magnitude", "num_magnitude_bins"}, or None
    "color_jitter": 0.0,  # strength of brightness, contrast and saturation
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
    # DeiT: strength 9 on a scale of 0..10, hence 11 bins. Its settings list a colour jitter of 0.4, but timm's loader,
    # which it trains with, switches jitter off beside RandAugment.
    "deit": _LIGHT
    | {
        "rand_augment": {"num_ops": 2, "magnitude": 9, "num_magnitude_bins": 11},
        "random_erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    # AugReg (big_vision vit_i1k): strength 15 lies past 10, the end of torchvision's ranges: the strongest bin.
    "augreg": _LIGHT
    | {
        "scale": (0.05, 1.0),
        "interpolation": "bilinear",
        "rand_augment": {"num_ops": 2, "magnitude": 15, "num_magnitude_bins": 16},
        "mixup": 0.5,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
}
_RAND_AUGMENT = {"num_ops": 2, "magnitude": 9, "num_magnitude_bins": 31}


def transform_options(recipe: str = "light", **overrides: Any) -> dict[str, Any]:
    """All options of a recipe, with single options replaced.

    Args:
        recipe: ``light``, ``deit`` or ``augreg``.
        overrides: any option of the recipe. ``None`` keeps the recipe's value; ``rand_augment=False`` and
            ``crop_padding=0`` switch off; a ``rand_augment`` mapping changes only the keys it names.

    Returns:
        A new dict with every option.

    Raises:
        ValueError: an unknown recipe, option or interpolation, or a value out of range.
    """
    options = dict(RECIPES[_choose("recipe", recipe, RECIPES)])
    for name, value in overrides.items():
        _choose("transform option", name, options)
        if value is None:
            continue
        if name == "rand_augment" and value is not False:
            value = _rand_augment(value, options["rand_augment"])
        options[name] = value or None if name in ("rand_augment", "crop_padding") else value
    _choose("interpolation", options["interpolation"], [mode.value for mode in v2.InterpolationMode])
    for name in ("hflip", "random_erasing", "mix_prob"):
        if not 0 <= options[name] <= 1:
            raise ValueError(f"data.{name} is a probability, got {options[name]}; give a number from 0 to 1")
    for name in ("color_jitter", "mixup", "cutmix"):
        if options[name] < 0:
            raise ValueError(f"data.{name} must not be negative, got {options[name]}; 0 switches it off")
    if not 0 < options["crop_pct"] <= 1:
        raise ValueError(f"data.crop_pct must lie in (0, 1], got {options['crop_pct']}; the usual value is 0.875")
    for name, length in {"scale": 2, "ratio": 2, "mean": 3, "std": 3}.items():
        options[name] = tuple(float(value) for value in options[name])
        if len(options[name]) != length:
            raise ValueError(f"data.{name} needs {length} numbers, got {options[name]}")
    return options


def _rand_augment(value: Any, base: dict[str, int] | None) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError(f"data.rand_augment is a mapping such as {{num_ops: 2, magnitude: 9}} or false, got {value!r}")
    for key in value:
        _choose("rand_augment option", key, _RAND_AUGMENT)
    options = (base or _RAND_AUGMENT) | value
    if not 0 <= options["magnitude"] < options["num_magnitude_bins"]:
        raise ValueError(
            f"data.rand_augment.magnitude is {options['magnitude']}, but num_magnitude_bins of "
            f"{options['num_magnitude_bins']} allows 0 to {options['num_magnitude_bins'] - 1}; change one of the two"
        )
    return options


def _choose(kind: str, name: Any, valid: Any) -> Any:
    if name not in valid:
        close = difflib.get_close_matches(str(name), list(valid), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown {kind} {name!r}: {hint}valid: {', '.join(valid)}")
    return name


class ResizeToCover(v2.Transform):
    """Resize, keeping the aspect ratio, to the smallest image that covers ``size``.

    For a square this is torchvision's resize of the shorter side; for any other shape that would not always cover.
    """

    def __init__(self, size: tuple[int, int], interpolation: v2.InterpolationMode) -> None:
        super().__init__()
        self.size, self.interpolation = size, interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The size of the resized image (called by torchvision's ``Transform``)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = max(self.size[0] / height, self.size[1] / width)
        # max(): the product may fall one short of the side that it was made from
        return {"size": [max(round(height * factor), self.size[0]), max(round(width * factor), self.size[1])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image (called by torchvision's ``Transform``)."""
        return v2.functional.resize(inpt, params["size"], interpolation=self.interpolation, antialias=True)


def _resize(size: tuple[int, int], interpolation: v2.InterpolationMode) -> v2.Transform:
    if size[0] == size[1]:
        return v2.Resize(size[0], interpolation=interpolation, antialias=True)
    return ResizeToCover(size, interpolation)


class PadCropFlip:
    """Pads by zeros, crops a random window of ``size``, and flips it with a probability.

    The same as v2's ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip``, which take about three times as long to
    decide what to do with a small image as to do it.
    """

    def __init__(self, size: tuple[int, int], padding: int, hflip: float) -> None:
        self.size, self.padding, self.hflip = size, padding, hflip

    def __call__(self, image: Tensor) -> Tensor:
        """``(3, H, W)`` at least as large as ``size`` less twice the padding -> ``(3, *size)``."""
        (height, width), p = self.size, self.padding
        padded = torch.nn.functional.pad(image, (p, p, p, p))
        free_rows, free_columns = padded.shape[1] - height, padded.shape[2] - width
        place = torch.rand(3).tolist()
        top, left = int(place[0] * (free_rows + 1)), int(place[1] * (free_columns + 1))
        window = padded[:, top : top + height, left : left + width]
        return window.flip(-1) if place[2] < self.hflip else window


class Pipeline:
    """What is done to each image, and what is done to a whole batch, which is cheaper by image.

    Called with one image it does both. Attributes:
        sample: uint8 ``(3, H, W)`` -> uint8 ``(3, *img_size)``, or None where ``resize`` does it all.
        resize: a transform without randomness; images of one size go through it as one batch.
        options: from `transform_options`: normalisation and erasing.
    """

    # From so many pixels on, a batch of images leaves the processor's cache on its way through a resize.
    _LARGE = 128 * 128

    def __init__(self, sample: v2.Compose | None, resize: v2.Compose | None, options: dict[str, Any]) -> None:
        self.sample, self.resize = sample, resize
        self.mean, self.std = list(options["mean"]), list(options["std"])
        # after the normalisation: the hole is filled with unit noise, pixel by pixel, as DeiT does
        erase = options["random_erasing"]
        self.erase = v2.RandomErasing(erase, value="random") if erase else None

    def stack(self, images: list[Tensor]) -> Tensor:
        """Images as `sample` left them, uint8 -> normalised float ``(B, 3, *img_size)``."""
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
        """uint8 ``(3, H, W)`` -> normalised float ``(3, *img_size)``."""
        return self.stack([image if self.sample is None else self.sample(image)])[0]


def train_transform(img_size: tuple[int, int], options: dict[str, Any]) -> Pipeline:
    """uint8 ``(3, H, W)`` of any size -> augmented, normalised float ``(3, *img_size)``.

    Args:
        img_size: (height, width) in pixels.
        options: from `transform_options`.
    """
    interpolation = v2.InterpolationMode(options["interpolation"])
    steps: list[Any] = []
    if options["crop_padding"]:
        steps += [_resize(img_size, interpolation), PadCropFlip(img_size, options["crop_padding"], options["hflip"])]
    else:
        crop = {"scale": options["scale"], "ratio": options["ratio"], "interpolation": interpolation, "antialias": True}
        steps.append(v2.RandomResizedCrop(img_size, **crop))
        if options["hflip"]:
            steps.append(v2.RandomHorizontalFlip(options["hflip"]))
    if options["rand_augment"]:
        # what a rotation or a shear uncovers gets the mean colour
        fill = [round(255 * value) for value in options["mean"]]
        steps.append(v2.RandAugment(**options["rand_augment"], fill=fill))
    if options["color_jitter"]:
        steps.append(v2.ColorJitter(*[options["color_jitter"]] * 3))
    return Pipeline(v2.Compose(steps), None, options)


def eval_transform(img_size: tuple[int, int], options: dict[str, Any]) -> Pipeline:
    """uint8 ``(3, H, W)`` of any size -> the normalised centre crop ``(3, *img_size)``; nothing is random.

    Args:
        img_size: (height, width) in pixels.
        options: from `transform_options`.
    """
    height, width = (round(side / options["crop_pct"]) for side in img_size)
    resize = _resize((height, width), v2.InterpolationMode(options["interpolation"]))
    return Pipeline(None, v2.Compose([resize, v2.CenterCrop(img_size)]), options | {"random_erasing": 0.0})


class Collate:
    """Samples -> one batch; drops the ``None`` of images left out, and mixes images and targets where asked to.

    Args:
        pipeline: makes the batch of the images that its ``sample`` left; None: they are stacked as they are.
        num_classes: number of classes ``C`` of the soft targets.
        mixup: alpha of MixUp, 0 = off.
        cutmix: alpha of CutMix, 0 = off; with both, each batch draws one of them.
        prob: probability that a batch is mixed.

    Calling it returns ``(images (B, 3, H, W), items)``: int64 targets ``(B,)`` without mixing, soft float targets
    ``(B, C)`` with it (also for the batches left unmixed), a list where items are strings.
    """

    def __init__(
        self,
        num_classes: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.num_classes, self.prob, self.pipeline = num_classes, prob, pipeline
        mixes = [
            mix(alpha=alpha, num_classes=num_classes)
            for mix, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, samples: list[tuple[Tensor, Any] | None]) -> tuple[Tensor, Any]:
        """Samples ``(image (3, H, W), item)``, or ``None``, to a batch; ``ValueError`` if nothing is left of them."""
        kept = [sample for sample in samples if sample is not None]
        if not kept:
            raise ValueError(
                f"every one of the {len(samples)} images of a batch is corrupt (each was named in a warning); "
                "repair the data set or set a larger data.batch_size"
            )
        images, items = [image for image, _ in kept], default_collate([item for _, item in kept])
        images = torch.stack(images) if self.pipeline is None else self.pipeline.stack(images)
        if self.mix is None:
            return images, items
        if torch.rand(()) < self.prob:
            return self.mix(images, items)
        return images, torch.nn.functional.one_hot(items, self.num_classes).to(images.dtype)  # (B,) -> (B, C)
