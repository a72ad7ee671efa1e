"""Draws, blurs, zooms and fractals that the corruptions are made of, on batches `(B, C, H, W)`."""

from collections.abc import Sequence
from math import ceil, log2

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

ZOOM_STEP = 0.01


def normal(draws: list[Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal `(B, *shape)`, from one generator per image."""
    return torch.stack([torch.randn(tuple(shape), generator=draw) for draw in draws])


def uniform(draws: list[Generator], shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform `(B, *shape)` in [low, high), from one generator per image."""
    return low + (high - low) * torch.stack([torch.rand(tuple(shape), generator=draw) for draw in draws])


def gaussian(x: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian blur up to `truncate` deviations; the border pixel goes on outside."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x.clone()
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)  # (C, 1, 1, k)
    x = F.pad(x, (radius,) * 4, mode="replicate")
    x = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])


def disk(radius: float, alias: float) -> Tensor:
    """A disk `(k, k)` of sum one, softened by a 3 x 3 Gaussian of deviation `alias`."""
    reach = max(1, ceil(radius))
    places = torch.arange(-reach - 1, reach + 2)  # one more on each side, for the softening
    inside = ((places[:, None] ** 2 + places**2) <= radius**2).float()
    weights = torch.exp(-0.5 * (torch.arange(-1, 2) / alias) ** 2)
    weights = torch.outer(weights, weights) / weights.sum() ** 2
    soft = F.conv2d(F.pad(inside[None, None], (1, 1, 1, 1)), weights[None, None])[0, 0]
    return soft / soft.sum()


def filter_reflect(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlation with `(k, k)`; the image is reflected about its border pixels."""
    reach = kernel.shape[0] // 2
    x = F.pad(x, (reach,) * 4, mode="reflect")
    return F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def motion(x: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """One-sided Gaussian of deviation `sigma` over 2 radius + 1 pixels along `degrees` `(B,)`; the border goes on."""
    B, _, H, W = x.shape
    width = 2 * radius + 1
    weights = torch.exp(-0.5 * (torch.arange(width) / sigma) ** 2)
    angle, total = torch.deg2rad(degrees), torch.zeros_like(x)
    images = torch.arange(B)[:, None, None]
    for i, weight in enumerate(weights / weights.sum()):
        rows = (torch.arange(H) + (i * angle.sin()).round()[:, None]).clamp(0, H - 1).long()  # (B, H)
        columns = (torch.arange(W) + (i * angle.cos()).round()[:, None]).clamp(0, W - 1).long()  # (B, W)
        # indices (B, H, W) pick channel vectors: (B, H, W, C) -> (B, C, H, W)
        total += weight * x.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    return total


def zoom(x: Tensor, factor: float) -> Tensor:
    """The middle, enlarged by `factor` to the same size, bilinearly."""
    H, W = x.shape[2:]
    h, w = ceil(H / factor - 1e-9), ceil(W / factor - 1e-9)
    top, left = (H - h) // 2, (W - w) // 2
    middle = x[:, :, top : top + h, left : left + w]
    size = max(H, round(h * factor)), max(W, round(w * factor))
    large = F.interpolate(middle, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - H) // 2, (size[1] - W) // 2
    return large[:, :, top : top + H, left : left + W]


def plasma(draws: list[Generator], size: Sequence[int], decay: float) -> Tensor:
    """Diamond-square fractals `(B, *size)` in [0, 1], periodic in the next power of two.

    Args:
        draws: One generator per image.
        size: (height, width).
        decay: Factor by which the roughness falls from one scale to the next.
    """
    side = 2 ** ceil(log2(max(size)))
    field = torch.zeros(len(draws), side, side)
    step, rough = side, 100.0
    while step >= 2:
        half = step // 2

        def mean_and_noise(total: Tensor, rough: float = rough) -> Tensor:
            return total / 4 + rough**2 * uniform(draws, total.shape[1:], -1, 1)

        corners = field[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = mean_and_noise(rows + rows.roll(-1, 2))  # the middle of each square
        middles = field[:, half::step, half::step]
        above = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = mean_and_noise(above)
        beside = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = mean_and_noise(beside)
        step, rough = half, rough / decay
    field -= field.amin(dim=(1, 2), keepdim=True)
    field /= field.amax(dim=(1, 2), keepdim=True)
    return field[:, : size[0], : size[1]]


def warp(x: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples at pixel coordinates `places` `(B, H, W, 2)`, (x, y); the image is reflected outside."""
    H, W = x.shape[2:]
    # pixel centres 0 .. size - 1 -> -1 .. 1
    scaled = 2 * places / torch.tensor([max(W - 1, 1), max(H - 1, 1)]) - 1
    return F.grid_sample(x, scaled, mode="bilinear", padding_mode="reflection", align_corners=True)
