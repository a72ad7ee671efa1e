"""The 15 corruptions of CIFAR-10-C at 5 severities, for data that no published corrupted version exists of.

Written from the published definitions (Hendrycks and Dietterich, arXiv 1903.12261) with the severities of CIFAR-10-C.
The package behind `datamodules.robustness.imagenet_c` cannot replace them: it knows only the severities of ImageNet-C.
Two things differ from the published arrays: frost is a drawn texture, not a photograph of frost; and blurs, zooms and
warps are torch's, which differ from OpenCV's and ImageMagick's at the borders and in rounding.

Every image is corrupted by its own seed: the result depends on nothing else in its batch.

Letters: B images of a batch, (H, W) pixels. Functions take and return float `(B, 3, H, W)`, in [0, 1] before clipping.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from math import ceil
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, rgb_to_grayscale, to_pil_image

from datamodules.robustness.filters import (
    ZOOM_STEP,
    disk,
    filter_reflect,
    gaussian,
    motion,
    normal,
    plasma,
    uniform,
    warp,
    zoom,
)

Draws = list[Generator]
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(x: Tensor, draws: Draws, std: float) -> Tensor:
    """Additive normal noise."""
    return x + std * normal(draws, x.shape[1:])


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson noise, where full brightness has the mean of `photons` photons."""
    return (
        torch.stack([torch.poisson(image * photons, generator=draw) for image, draw in zip(x, draws, strict=True)])
        / photons
    )


def impulse_noise(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Salt and pepper on a share of the values, channel by channel."""
    flipped, salt = uniform(draws, x.shape[1:]) < amount, uniform(draws, x.shape[1:]) < 0.5
    return torch.where(flipped, salt.float(), x)


def defocus_blur(x: Tensor, draws: Draws, radius: float, alias: float) -> Tensor:
    """A disk, its edge softened by a Gaussian of deviation `alias`."""
    return filter_reflect(x, disk(radius, alias))


def glass_blur(x: Tensor, draws: Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blur, pixels replaced by neighbours at most `reach` away, blur; as published, copied and not swapped."""
    H, W = x.shape[2:]
    x = (gaussian(x, sigma) * 255).floor() / 255
    rows, columns = range(H - reach, reach, -1), range(W - reach, reach, -1)
    shape = (rounds, len(rows), len(columns), 2)
    moves = torch.stack([torch.randint(-reach, reach, shape, generator=draw) for draw in draws])  # (B, rounds, h, w, 2)
    images = torch.arange(len(x))
    for step in range(rounds):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dx, dy = moves[:, step, i, j].unbind(-1)
                x[:, :, row, column] = x[images, :, row + dy, column + dx]
    return gaussian(x, sigma)


def motion_blur(x: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """A one-sided Gaussian along a direction within 45 degrees of horizontal."""
    return motion(x, uniform(draws, (), -45, 45), radius, sigma)


def zoom_blur(x: Tensor, draws: Draws, largest: float) -> Tensor:
    """Mean of the image and of its enlargements from 1 to (without) `largest`, in steps of 0.01."""
    factors = [1 + ZOOM_STEP * i for i in range(ceil((largest - 1) / ZOOM_STEP - 1e-9))]
    return (x + sum(zoom(x, factor) for factor in factors)) / (1 + len(factors))


def snow(
    x: Tensor,
    draws: Draws,
    mean: float,
    std: float,
    factor: float,
    least: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Tensor:
    """Bright flakes, drawn out downwards, on an image that is whitened a little."""
    layer = zoom(mean + std * normal(draws, (1, *x.shape[2:])), factor)  # (B, 1, H, W)
    layer = torch.where(layer < least, 0, layer).clamp(0, 1)
    layer = motion((layer * 255).floor() / 255, uniform(draws, (), -135, -45), radius, sigma)
    x = keep * x + (1 - keep) * torch.maximum(x, rgb_to_grayscale(x) * 1.5 + 0.5)
    return x + layer + layer.flip(2, 3)


def frost(x: Tensor, draws: Draws, keep: float, ice: float) -> Tensor:
    """Bluish ridges of a fractal, in place of the published photographs of frost."""
    ridges = 1 - (2 * plasma(draws, x.shape[2:], 1.6) - 1).abs()  # (B, H, W)
    return keep * x + ice * ridges[:, None] * torch.tensor([0.85, 0.93, 1.0]).view(3, 1, 1)


def fog(x: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """A fractal haze that takes contrast away."""
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    return (x + amount * plasma(draws, x.shape[2:], decay)[:, None]) * brightest / (brightest + amount)


def brightness(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """More value (of hue, saturation, value)."""
    value = x.amax(dim=1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-12), brighter)


def contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Moves each value towards the mean of its channel."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Tensor, draws: Draws, strength: float, sigma: float, corners: float) -> Tensor:
    """An affine map of moved corners, then a smooth random displacement; all in parts of the image's width."""
    B, _, H, W = x.shape
    noise = uniform(draws, (3, 2), -corners * W, corners * W)  # of three points, (x, y)
    third = min(H, W) // 3
    middle = torch.tensor([W // 2, H // 2])
    points = torch.stack([middle + third, middle + torch.tensor([third, -third]), middle - third]).float()  # (3, 2)
    moved = torch.cat([points + noise, torch.ones(B, 3, 1)], dim=2)  # (B, 3, 3)
    back = torch.linalg.solve(moved, points.expand(B, 3, 2))  # (B, 3, 2): [x y 1] @ back is where (x, y) came from
    rows, columns = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    places = torch.stack([columns, rows, torch.ones(H, W)], dim=-1).view(1, H * W, 3) @ back  # (B, H W, 2)
    x = warp(x, places.view(B, H, W, 2))
    if not strength:
        return x
    shift = strength * W * gaussian(uniform(draws, (2, H, W), -1, 1), sigma * W, truncate=3)  # (B, 2, H, W)
    return warp(x, torch.stack([columns, rows], dim=-1) + shift.permute(0, 2, 3, 1))


def pixelate(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Fewer pixels, each a square."""
    H, W = x.shape[2:]
    small = (int(W * factor), int(H * factor))
    return _through_pil(x, lambda image: image.resize(small, Image.Resampling.BOX).resize((W, H), Image.Resampling.BOX))


def jpeg_compression(x: Tensor, draws: Draws, quality: int) -> Tensor:
    """Encodes and decodes the image as a JPEG of this quality."""

    def compressed(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _through_pil(x, compressed)


def _through_pil(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    images = (x * 255).round().to(torch.uint8)
    return torch.stack([pil_to_tensor(change(to_pil_image(image))) for image in images]).float() / 255


# Severities 1 to 5 of CIFAR-10-C: the arguments after `x` and `draws`.
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[Any, ...]]]] = {
    "gaussian_noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": (defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass_blur": (glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "motion_blur": (motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (zoom_blur, [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)]),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (brightness, [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)]),
    "contrast": (contrast, [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)]),
    "elastic_transform": (
        elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (pixelate, [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)]),
    "jpeg_compression": (jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
}


def corrupt(images: Tensor, kind: str, severity: int, seeds: Sequence[int]) -> Tensor:
    """Corrupts images, each by its own seed.

    Args:
        images: uint8 `(B, 3, H, W)`; the severities are those for 32 pixels.
        kind: A name of `CORRUPTIONS`.
        severity: 1 to 5.
        seeds: B numbers, such as the places of the images in their data set.

    Returns:
        uint8 `(B, 3, H, W)`.

    Raises:
        ValueError: The kind or the severity does not exist.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"corruption {kind!r} is unknown: choose of {', '.join(CORRUPTIONS)}")
    function, severities = CORRUPTIONS[kind]
    if not 1 <= severity <= len(severities):
        raise ValueError(f"severity {severity} of {kind}: choose 1 to {len(severities)}")
    place = 10 * list(CORRUPTIONS).index(kind) + severity
    draws = [Generator().manual_seed(1000 * seed + place) for seed in seeds]
    changed = function(images.float() / 255, draws, *severities[severity - 1])
    return (changed.clamp(0, 1) * 255).to(torch.uint8)  # truncated, as published
