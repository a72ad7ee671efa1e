"""The demo data set: ten shapes, rendered to disk as JPEGs in the ImageNet layout and read back like any other images.

Colour, texture, place, area and tilt are drawn alike for every class, so that only the shape tells the class.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from datamodules.demos.rendering import OVERSAMPLE, Rendered, coverage, draw_outline, progress, render_once, samples_of
from datamodules.images.datamodule import ImageFolderDataModule

CLASSES = ["arrow", "circle", "crescent", "cross", "heart", "hourglass", "ring", "square", "star", "triangle"]
_MARKER = "demo.json"
_VERSION = 3  # of the drawing; raise it when the pictures change


def _circle(radius: float, x: float = 0.0, y: float = 0.0) -> list[tuple[float, float]]:
    angles = [2 * math.pi * step / 40 for step in range(40)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    corners = [((1.05, 0.42)[step % 2], math.pi * step / 5 - math.pi / 2) for step in range(10)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners]


def _cross() -> list[tuple[float, float]]:
    arm = [(-0.3, -1.0), (0.3, -1.0), (0.3, -0.3)]  # one arm; a quarter turn takes (x, y) to (-y, x)
    turns = [lambda x, y: (x, y), lambda x, y: (-y, x), lambda x, y: (-x, -y), lambda x, y: (y, -x)]
    return [turn(x, y) for turn in turns for x, y in arm]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * step / 40 for step in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.12,
        )
        for a in angles
    ]


# Outlines in [-1, 1] x [-1, 1], y downwards: what is filled, then (where there is one) the hole.
_OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "arrow": [[(-0.3, 1.0), (-0.3, 0.0), (-0.9, 0.0), (0.0, -1.0), (0.9, 0.0), (0.3, 0.0), (0.3, 1.0)]],
    "circle": [_circle(0.9)],
    "crescent": [_circle(1.0), _circle(0.85, x=0.5)],
    "cross": [_cross()],
    "heart": [_heart()],
    "hourglass": [[(-0.85, -1), (0.85, -1), (0.12, 0), (0.85, 1), (-0.85, 1), (-0.12, 0)]],
    "ring": [_circle(1.0), _circle(0.55)],
    "square": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "star": [_star()],
    "triangle": [[(0, -1.0), (1.0, 0.8), (-1.0, 0.8)]],
}


def _fill(name: str, turn: np.ndarray, centre: np.ndarray, side: int) -> Image.Image:
    """The outline of a shape, turned and scaled by `turn` (2, 2), in white on a black square of `side` pixels."""
    return draw_outline(side, (np.asarray(outline) @ turn + centre for outline in _OUTLINES[name]), (255, 0))


@cache
def _equal_area(name: str) -> float:
    """The factor that gives every shape one area, 1.7 radius^2; otherwise the mean brightness would tell the class."""
    side = 300
    share = np.asarray(_fill(name, np.eye(2) * side / 3, np.full(2, side / 2), side), float).mean() / 255
    return math.sqrt(1.7 / (9 * share))  # the square is 3 x 3 radii


def _mask(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Coverage `(size, size, 1)` in 0..1 of one shape at a random place, size and tilt."""
    fine = size * OVERSAMPLE
    radius = rng.uniform(0.3, 0.38) * fine * _equal_area(name)
    centre = fine / 2 + rng.uniform(-0.04, 0.04, 2) * fine
    tilt = rng.uniform(-0.2, 0.2)  # radians, 11 degrees either way
    turn = radius * np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    return coverage(_fill(name, turn, centre, fine))


def _colour(light: bool, rng: np.random.Generator) -> np.ndarray:
    """A random colour `(3,)` whose brightness lies on one side, so that shape and background always differ."""
    brightness = rng.uniform(180, 215) if light else rng.uniform(40, 75)
    tint = rng.uniform(-1, 1, 3)
    return brightness + 40 * (tint - tint.mean())


def _texture(light: bool, size: int, rng: np.random.Generator) -> np.ndarray:
    """A surface `(size, size, 3)`: plain, striped, checked, graded or blotched, in two colours of one side."""
    y, x = np.mgrid[:size, :size] / size
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.1, 0.3)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    kind = rng.integers(5)
    if kind == 0:
        blend = np.zeros((size, size))
    elif kind == 1:
        blend = (along / period % 1 > 0.5).astype(float)
    elif kind == 2:
        blend = ((along / period % 1 > 0.5) ^ (across / period % 1 > 0.5)).astype(float)
    elif kind == 3:
        blend = np.clip(along, 0, 1)
    else:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        blend = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), float) / 255
    blend = blend[..., None]  # (size, size) -> (size, size, 1)
    return _colour(light, rng) * (1 - blend) + _colour(light, rng) * blend


def _clutter(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The background `(size, size, 3)` with a few small strokes and dots of any colour on it."""
    size = len(background)
    canvas = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 6)):
        colour = tuple(int(value) for value in np.clip(_colour(bool(rng.integers(2)), rng), 0, 255))
        x, y = rng.uniform(0, size, 2)
        dx, dy = rng.uniform(-0.15, 0.15, 2) * size
        if rng.integers(2):
            draw.line((x, y, x + dx, y + dy), fill=colour, width=int(rng.integers(1, 3)))
        else:
            draw.ellipse((x, y, x + abs(dx) / 2 + 1, y + abs(dy) / 2 + 1), fill=colour)
    return np.asarray(canvas, np.float32)


def draw_shape(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """One picture of one class.

    Args:
        name: One of `CLASSES`.
        size: Pixels, both sides.
        rng: The only source of chance.
    """
    mask = _mask(name, size, rng)  # (size, size, 1)
    # Light on dark in every class: small models then learn the shapes in a minute rather than in ten.
    picture = _texture(True, size, rng) * mask + _clutter(_texture(False, size, rng), rng) * (1 - mask)
    picture += rng.normal(0, 6, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def render_demo(
    root: str | Path, seed: int = 0, train_per_class: int = 600, val_per_class: int = 100, size: int = 48
) -> bool:
    """Write `root/train/CLASS/*.jpg` and `root/val/CLASS/*.jpg`; the same bytes for the same arguments.

    Nothing is written where the same data set already lies; an interrupted run leaves no half of one.

    Args:
        root: Folder to make.
        seed: Seed of the pictures.
        train_per_class: Training images of each of the 10 classes.
        val_per_class: Validation images of each class.
        size: Pixels, both sides.

    Returns:
        True if it was rendered, False if it was there.

    Raises:
        ValueError: The folder holds something else, or a size is not positive.
    """
    root = Path(root).expanduser()
    arguments = {"version": _VERSION, "seed": seed, "train_per_class": train_per_class, "val_per_class": val_per_class}
    arguments["size"] = size
    if min(train_per_class, val_per_class, size) < 1:
        raise ValueError(f"the demo needs positive numbers of images and pixels, got {arguments}")

    def render(folder: Path) -> None:
        jobs = samples_of(train_per_class, val_per_class, len(CLASSES))
        for split, label, number in progress(jobs, "the demo data", root):
            class_folder = folder / ("train", "val")[split] / CLASSES[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            picture = draw_shape(CLASSES[label], size, np.random.default_rng([seed, split, label, number]))
            picture.save(class_folder / f"{number:05d}.jpg", quality=90)

    return render_once(root, _MARKER, arguments, "demo data", render)


class DemoDataModule(Rendered, ImageFolderDataModule):
    """The ten shapes of `render_demo`, rendered on first use and then read from disk.

    Args:
        root: The folder to render into.
        train_per_class: Training images of each class.
        val_per_class: Validation images of each class.
        render_seed: Seed of the pictures.
        size: Pixels of a rendered picture, both sides.
        img_size: Pixels the model sees.
        crop_padding: Pixels to pad by before the random crop.
        crop_pct: 1: the whole image is evaluated.
        num_classes: 10.
        cache: Decode all images once into memory.
        kwargs: As for `ImageFolderDataModule`.
    """

    marker, render = _MARKER, staticmethod(render_demo)

    def __init__(
        self,
        root: str = "demo_data",
        train_per_class: int = 600,
        val_per_class: int = 100,
        render_seed: int = 0,
        size: int = 48,
        img_size: int | tuple[int, int] = 48,
        crop_padding: int | None = 4,
        crop_pct: float | None = 1.0,
        num_classes: int | None = 10,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        own = {"img_size": img_size, "crop_padding": crop_padding, "crop_pct": crop_pct}
        super().__init__(root, num_classes=num_classes, cache=cache, **own, **kwargs)
        self.render_arguments = {"train_per_class": train_per_class, "val_per_class": val_per_class, "size": size}
        self.render_arguments["seed"] = render_seed

    def _known_classes(self) -> list[str] | None:
        return CLASSES
