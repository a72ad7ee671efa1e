"""Simple shifts of the distribution: no colour, edges alone, patches in another order, patches left out.

A shift is named by a text: `grayscale`, `sketch`, `patch_shuffle_4x4` (a grid of 4 rows and 4 columns of patches) or
`occlusion_25` (per cent of the patches). What is random follows the image's seed.
"""

import re

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import rgb_to_grayscale

from datamodules.robustness.filters import gaussian

SHIFTS = (
    "grayscale",
    "sketch",
    *(f"patch_shuffle_{n}x{n}" for n in (2, 4, 7, 14)),
    *(f"occlusion_{share}" for share in (25, 50, 75)),
)
_DARKEST = 0.99  # the share of the pixels whose edge is no stronger than what is drawn black
_PEN = 1.0  # pixels: deviation of the blur before the edges are taken


def shift_image(image: Tensor, kind: str, seed: int, patch_size: int = 16, colour: Tensor | None = None) -> Tensor:
    """Applies one shift to one image.

    Args:
        image: uint8 `(3, H, W)`.
        kind: As the module says; a name of `SHIFTS`, or one with other numbers.
        seed: Of the order of the patches, and of which are left out. More patches left out include the fewer.
        patch_size: Pixels of a patch that is left out; H and W must be multiples of it.
        colour: What is left out becomes this, uint8 `(3,)`; None: the image's own mean.

    Returns:
        uint8 `(3, H, W)`.

    Raises:
        ValueError: An unknown kind, or an image that the patches do not divide; one line.
    """
    name, numbers = parse_shift(kind)
    if name == "grayscale":
        return rgb_to_grayscale(image, num_output_channels=3)
    if name == "sketch":
        return _sketch(image)
    draw = torch.Generator().manual_seed(seed)
    if name == "patch_shuffle":
        patches, grid = _cut(image, *numbers, kind)
        return _join(patches[torch.randperm(len(patches), generator=draw)], grid)
    patches, grid = _cut(image, image.shape[1] // patch_size, image.shape[2] // patch_size, kind)
    left_out = torch.randperm(len(patches), generator=draw)[: round(numbers[0] / 100 * len(patches))]
    if colour is None:
        colour = image.float().mean(dim=(1, 2)).round().to(torch.uint8)
    patches[left_out] = colour.view(3, 1, 1)
    return _join(patches, grid)


def parse_shift(kind: str) -> tuple[str, list[int]]:
    """The kind of a shift and its numbers: "patch_shuffle_4x4" is ("patch_shuffle", [4, 4]).

    Raises:
        ValueError: One line, if there is no such shift.
    """
    if kind in ("grayscale", "sketch"):
        return kind, []
    if match := re.fullmatch(r"patch_shuffle_([1-9]\d*)x([1-9]\d*)", kind):
        return "patch_shuffle", [int(match[1]), int(match[2])]
    if (match := re.fullmatch(r"occlusion_(\d+)", kind)) and 0 < int(match[1]) <= 100:
        return "occlusion", [int(match[1])]
    raise ValueError(f"shift {kind!r} is unknown: choose of {', '.join(SHIFTS)}, or with other numbers")


def _sketch(image: Tensor) -> Tensor:
    """Dark edges on white: Sobel's gradient of the smoothed brightness."""
    grey = gaussian(rgb_to_grayscale(image)[None].float() / 255, _PEN)  # (1, 1, H, W)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    edges = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(dim=1).sqrt()  # (1, H, W)
    # not less than a step of one grey level, so that a blank image stays blank
    darkest = torch.quantile(edges, _DARKEST).clamp(min=4 / 255)
    drawn = 1 - (edges / darkest).clamp(max=1)
    return (255 * drawn).round().to(torch.uint8).expand(3, -1, -1).contiguous()


def _cut(image: Tensor, rows: int, columns: int, kind: str) -> tuple[Tensor, tuple[int, int]]:
    """The patches `(rows * columns, 3, h, w)` of `(3, H, W)`, a copy; and the grid."""
    _, H, W = image.shape
    if not rows or not columns or H % rows or W % columns:
        raise ValueError(f"{kind}: an image of {H}x{W} pixels is no grid of {rows}x{columns} patches of equal size")
    patches = image.view(3, rows, H // rows, columns, W // columns).permute(1, 3, 0, 2, 4)  # (r, c, 3, h, w)
    return patches.reshape(rows * columns, 3, H // rows, W // columns).clone(), (rows, columns)


def _join(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image `(3, H, W)` of patches `(rows * columns, 3, h, w)`."""
    (rows, columns), (_, _, h, w) = grid, patches.shape
    parts = patches.view(rows, columns, 3, h, w).permute(2, 0, 3, 1, 4)  # (3, r, h, c, w)
    return parts.reshape(3, rows * h, columns * w)
