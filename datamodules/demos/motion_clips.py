"""Short clips of one drawn object whose motion is the class; what a single frame shows tells nothing of it.

An object has a place, a size, an angle and an opacity, each drawn evenly from a range that is closed to a circle: what
leaves the picture at one side comes in at the other, what has grown largest starts again as the smallest. A class moves
one of the four at a constant speed round its circle, so that in every frame, of every class, each of them is
distributed evenly and independently of the rest. Only the change from frame to frame tells the classes apart, and each
class is another one played backwards.

Letters: `T` frames, `S` pixels of a side.
"""

import math

import numpy as np

from datamodules.demos.rendering import OVERSAMPLE, coverage, draw_outline

# What moves (place of `_STATE`), and which way round its circle.
MOTIONS: dict[str, tuple[int, int]] = {
    "appear": (4, 1),
    "grow": (2, 1),
    "move down": (1, 1),
    "move left": (0, -1),
    "move right": (0, 1),
    "move up": (1, -1),
    "rotate clockwise": (3, 1),
    "rotate counterclockwise": (3, -1),
    "shrink": (2, -1),
    "vanish": (4, -1),
}
CLASSES = sorted(MOTIONS)
_STATE = ("x", "y", "size", "angle", "opacity")
_RADIUS = (0.13, 0.34)  # least and greatest, of the picture's side
_OPACITY = (0.2, 1.0)
_TRAVEL = (0.4, 0.8)  # of the circle, over a whole clip

# Outlines in [-1, 1] x [-1, 1], y downwards; none looks the same after less than a full turn.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "arrow": [(-0.35, 1.0), (-0.35, 0.0), (-0.95, 0.0), (0.0, -1.0), (0.95, 0.0), (0.35, 0.0), (0.35, 1.0)],
    "flag": [(-0.7, 1.0), (-0.7, -1.0), (0.8, -0.6), (0.8, 0.2), (-0.3, 0.2), (-0.3, 1.0)],
    "hook": [(-0.8, -0.9), (-0.2, -0.9), (-0.2, 0.4), (0.8, 0.4), (0.8, 0.9), (-0.8, 0.9)],
    "drop": [(0.0, -1.1), (0.6, 0.1), (0.5, 0.7), (0.0, 0.95), (-0.5, 0.7), (-0.6, 0.1)],
}


def _mask(outline: str, state: np.ndarray, size: int) -> np.ndarray:
    """Coverage `(S, S, 1)` in 0..1 of an object on a picture whose opposite sides meet."""
    side = size * OVERSAMPLE
    radius = (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * state[2]) * side
    angle = 2 * math.pi * state[3]  # y points down: a growing angle turns clockwise
    turn = radius * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = np.asarray(_OUTLINES[outline]) @ turn + state[:2] * side  # (corners, 2)
    copies = [points + np.array([dx, dy]) for dx in (-side, 0, side) for dy in (-side, 0, side)]
    visible = [copy for copy in copies if (copy.max(axis=0) > 0).all() and (copy.min(axis=0) < side).all()]
    return coverage(draw_outline(side, visible))


def states(name: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """The object in each frame.

    Args:
        name: One of `CLASSES`.
        frames: T.
        rng: The only source of chance.

    Returns:
        `(T, 5)` in [0, 1): x, y, size, angle, opacity; each row is distributed evenly, whatever the class.
    """
    start = rng.uniform(0, 1, len(_STATE))
    step = rng.uniform(*_TRAVEL) / max(1, frames - 1)
    which, way = MOTIONS[name]
    path = np.tile(start, (frames, 1))
    path[:, which] += way * step * np.arange(frames)
    return path % 1.0


def draw_clip(name: str, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One clip of one class.

    Args:
        name: One of `CLASSES`.
        frames: T.
        size: S, pixels of both sides.
        rng: The only source of chance.

    Returns:
        uint8 `(T, S, S, 3)`.
    """
    outline = list(_OUTLINES)[rng.integers(len(_OUTLINES))]
    light = bool(rng.integers(2))  # on a dark ground, or the other way round
    ground, colour = (_colour(bright, rng) for bright in (not light, light))
    shade = _shade(size, rng)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for picture, state in zip(clip, states(name, frames, rng), strict=True):
        opacity = _OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * state[4]
        mask = opacity * _mask(outline, state, size)  # (S, S, 1)
        picture[:] = np.clip((ground + shade) * (1 - mask) + colour * mask, 0, 255)
    return clip


def _colour(light: bool, rng: np.random.Generator) -> np.ndarray:
    """A random colour `(3,)` of one side of grey, so that object and ground differ."""
    return (rng.uniform(170, 220) if light else rng.uniform(35, 85)) + rng.uniform(-30, 30, 3)


def _shade(size: int, rng: np.random.Generator) -> np.ndarray:
    """Light falling from a random side, `(S, S, 1)`; the same in all frames of a clip."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    return (rng.uniform(0, 30) * (x * math.cos(angle) + y * math.sin(angle)))[..., None]
