"""The 15 corruptions of ImageNet-C at its own constants, on one image at a time, by a seed of its own.

Fourteen are those of the package imagecorruptions-imaug (the extra `robustness`), the kept version of imagecorruptions,
which brings the published photographs of frost. `elastic_transform` is written here from the published definition
(Hendrycks and Dietterich, arXiv 1903.12261): the package's has other constants and no affine part.

From the published images these differ in four things: they were saved as JPEGs of quality 85 after the corruption, and
these are not; the package's motion blur (also of snow) sums shifted images in place of ImageMagick's filter; its
zooms keep the top left of what is enlarged, not the middle; and it enlarges each photograph of frost by 1.1 and draws
from all six.

`datamodules.robustness.corruptions` has those of CIFAR-10-C, whose constants are for 32 pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from datamodules.robustness.corruptions import CORRUPTIONS, SEVERITIES

__all__ = ["FAMILIES", "LEAST_SIDE", "SEVERITIES", "corrupt_image", "prepare"]

# The names are those of CIFAR-10-C, in the same order.
_NAMES = list(CORRUPTIONS)
FAMILIES = {"noise": _NAMES[:3], "blur": _NAMES[3:7], "weather": _NAMES[7:11], "digital": _NAMES[11:]}
LEAST_SIDE = 32  # pixels that the package asks for

_SEEDED = ("impulse_noise", "glass_blur")  # these take a seed; the others draw from numpy's global generator
_UNIT = 244  # pixels; as published, where 224 was meant
# Strength of the displacement, deviation of its blur, and largest move of a corner, in units of `_UNIT` pixels.
_ELASTIC = [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]


def corrupt_image(image: Tensor, kind: str, severity: int, seed: int) -> Tensor:
    """Corrupts one image.

    Args:
        image: uint8 `(3, H, W)`, at least 32 pixels high and wide; the constants are meant for 224.
        kind: A name of ImageNet-C, such as "fog".
        severity: 1 to 5.
        seed: The same image, kind, severity and seed give the same pixels, in any process.

    Returns:
        uint8 `(3, H, W)`.

    Raises:
        ValueError: An unknown kind or severity, or an image that is too small; one line.
        ModuleNotFoundError: The package is not installed; one line that says how to.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"corruption {kind!r} is unknown: choose of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} of {kind}: choose 1 to {len(SEVERITIES)}")
    if min(image.shape[1:]) < LEAST_SIDE:
        raise ValueError(f"ImageNet-C's corruptions need {LEAST_SIDE} pixels or more, got {tuple(image.shape[1:])}")
    package = prepare()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
    # each corruption and severity draws anew, as published
    (number,) = np.random.SeedSequence([seed, _NAMES.index(kind), severity]).generate_state(1).tolist()
    with _numpy_seed(number):
        if kind == "elastic_transform":
            changed = _elastic_transform(pixels, *(_UNIT * part for part in _ELASTIC[severity - 1]))
        else:
            own = {"seed": number} if kind in _SEEDED else {}
            changed = package.corrupt(pixels, severity, kind, **own)
    return torch.from_numpy(np.array(changed, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


@cache
def prepare() -> ModuleType:
    """The package, its compiled part compiled: workers that are forked afterwards have it, too."""
    try:
        import cv2
        import imagecorruptions
    except ImportError as error:
        raise ModuleNotFoundError(
            f"ImageNet-C's corruptions need the package imagecorruptions-imaug ({error}): "
            "pip install 'lookupvit[robustness]'"
        ) from error
    cv2.setNumThreads(0)  # its threads do not survive a fork, and the workers are the threads here
    for severity in (1, 3):  # of severity 3 all constants are whole numbers: another type, compiled by itself
        imagecorruptions.corrupt(np.zeros((LEAST_SIDE, LEAST_SIDE, 3), np.uint8), severity, "glass_blur", seed=0)
    return imagecorruptions


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """The global generator of numpy, seeded, and afterwards as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _elastic_transform(pixels: np.ndarray, strength: float, sigma: float, corners: float) -> np.ndarray:
    """An affine map of three moved points, then a displacement by blurred noise; `(H, W, 3)` uint8 to the same."""
    import cv2
    from scipy.ndimage import map_coordinates

    H, W = pixels.shape[:2]
    third = min(H, W) // 3
    points = np.array([W // 2, H // 2]) + third * np.array([[1, 1], [1, -1], [-1, -1]])  # (x, y)
    moved = points + np.random.uniform(-corners, corners, points.shape)
    matrix = cv2.getAffineTransform(points.astype(np.float32), moved.astype(np.float32))
    image = cv2.warpAffine(pixels.astype(np.float32) / 255, matrix, (W, H), borderMode=cv2.BORDER_REFLECT_101)
    right, down = (strength * _blur(H, sigma) @ np.random.uniform(-1, 1, (H, W)) @ _blur(W, sigma).T for _ in range(2))
    rows, columns = np.mgrid[:H, :W]
    places = [rows + down, columns + right]
    channels = [map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 1) * 255


@cache
def _blur(count: int, sigma: float) -> np.ndarray:
    """The Gaussian blur of `count` values, up to 3 deviations and reflected at the ends, as a matrix.

    As a matrix, because the kernel of severity 1 is four times as wide as the image.
    """
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(count), sigma, axis=0, mode="reflect", truncate=3)
