"""Fixed, separable, linear resize between token grids of one, two or three axes.

The compressed tokens are nothing but a resize of the lookup tokens, which is why one set of weights serves every
compressed size. The resize is one small matrix for each axis. `F.interpolate` would do the same for images, but its
backward pass is not deterministic on CUDA; the matrices can be exported, and the same code serves clips.

Letters: B batch, D channels, `from_size` and `to_size` token grids such as (h, w) or (t, h, w).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import floor, pi, prod
from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, ...]  # a token grid: (h, w) of images, (t, h, w) of clips


def _axis_matrix(from_size: int, to_size: int, antialias: bool, device: torch.device) -> Tensor:
    """Weights `(to_size, from_size)` of a linear interpolation with half-pixel centres, in the device's widest type."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    scale = from_size / to_size
    support = torch.sym_max(scale, 1.0) if antialias else 1.0  # half-width of the triangle filter, in source cells
    centres = (torch.arange(to_size, dtype=wide, device=device) + 0.5) * scale - 0.5
    if not antialias:  # outside the grid the edge value is held, as torch and jax do
        centres = centres.clamp(0.0, from_size - 1.0)
    cells = torch.arange(from_size, dtype=wide, device=device)
    weights = (1.0 - (cells - centres[:, None]).abs() / support).clamp(min=0.0)  # (to_size, from_size)
    return weights / weights.sum(dim=1, keepdim=True)


@lru_cache(maxsize=256)
def _cached_matrix(from_size: int, to_size: int, antialias: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A matrix made under inference_mode could never take part in a later backward pass.
    with torch.inference_mode(False):
        return _axis_matrix(from_size, to_size, antialias, device).to(dtype)


def resize_matrix(from_size: int, to_size: int, antialias: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of a linear resize along one axis.

    Under torch.compile and torch.export its computation becomes a part of the graph: a few numbers, computed on the
    input's device when they are needed. No constant has to be named, moved, saved or shared.

    Args:
        from_size: Number of cells before.
        to_size: Number of cells after.
        antialias: Whether to widen the triangle filter when shrinking, as `jax.image.resize` does by default.
        dtype: Element type of the result.
        device: Where the result lives.

    Returns:
        The matrix `(to_size, from_size)`, whose rows sum to one. It is cached: do not write to it.
    """
    if torch.compiler.is_compiling():
        return _axis_matrix(from_size, to_size, antialias, device).to(dtype)
    matrix = _cached_matrix(from_size, to_size, antialias, dtype, device)
    if type(matrix) is not Tensor:  # a tracer's stand-in must not stay in the cache for later, real calls
        _cached_matrix.cache_clear()
    return matrix


def resize_tokens(x: Tensor, from_size: Size, to_size: Size, antialias: bool = True) -> Tensor:
    """Resizes tokens from one grid to another, (bi-, tri-)linearly.

    Under autocast it computes in float32 and returns float32. Its result is the residual stream of the compressed
    tokens, which must not be rounded; the lookup tokens' stream and that of timm's ViT are float32 as well.

    Args:
        x: `(B, prod(from_size), D)`.
        from_size: Grid of `x`, one entry for each axis.
        to_size: New grid, with as many axes.
        antialias: See `resize_matrix`.

    Returns:
        `(B, prod(to_size), D)`; `x` itself if the sizes are equal.

    Raises:
        ValueError: If the grids differ in their number of axes, or `x` is not of `from_size`.
    """
    if len(from_size) != len(to_size):
        raise ValueError(f"cannot resize a {len(from_size)}-axis grid {from_size} to {to_size}: give as many axes")
    N = x.shape[1]
    if prod(from_size) != N:
        raise ValueError(f"{N} tokens are not a grid of {from_size}: expected {prod(from_size)}")
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return _resize(x, from_size, to_size, antialias)
    with torch.autocast(x.device.type, enabled=False):
        return _resize(x.to(torch.promote_types(x.dtype, torch.float32)), from_size, to_size, antialias)


def _resize(x: Tensor, from_size: Size, to_size: Size, antialias: bool) -> Tensor:
    B, _, D = x.shape
    done = 1  # cells of the axes that are already resized
    for axis, (old, new) in enumerate(zip(from_size, to_size, strict=True)):
        # A size that a program leaves open may be equal or not: the matrix is then the identity.
        if isinstance(old, torch.SymInt) or isinstance(new, torch.SymInt) or old != new:
            rest = prod(from_size[axis + 1 :]) * D
            matrix = resize_matrix(old, new, antialias, x.dtype, x.device)
            # (B, done * old * rest) -> (B * done, old, rest) -> (B * done, new, rest)
            x = torch.matmul(matrix, x.reshape(B * done, old, rest))
        done *= new
    return x.reshape(B, prod(to_size), D)


def check_compressed_size(size: int | Size, grid: Size) -> Size:
    """Returns `size` as a tuple of ints; raises a one-line ValueError if it does not fit into the lookup `grid`."""
    if isinstance(size, int):
        size = (size,) * len(grid)
    size = tuple(int(s) for s in size)
    if len(size) != len(grid):
        raise ValueError(f"compressed_size {size} has {len(size)} axes, the lookup grid {grid} has {len(grid)}")
    if any(s < 1 or s > g for s, g in zip(size, grid, strict=True)):
        raise ValueError(
            f"compressed_size {size} does not fit the lookup grid {grid}: each axis must lie between 1 and the grid's; "
            "choose a smaller compressed_size or a larger image"
        )
    return size


def covering_grid(size: Sequence[int], patch: Size) -> Size:
    """The lookup grid of an input that is padded until `patch` divides it."""
    return tuple(-(-side // step) for side, step in zip(size, patch, strict=True))


def size_at_stride(img_size: Sequence[int], stride: int, grid: Size) -> Size:
    """The compressed grid with one token for every `stride` pixels along each axis: it follows the image's aspect.

    Args:
        img_size: Image size in pixels, one entry for each axis.
        stride: Pixels per compressed token.
        grid: Lookup grid of the image; the result is never larger.

    Returns:
        The quotients, rounded half up, each at least 1.
    """
    return tuple(
        min(max((2 * side + stride) // (2 * stride), 1), cells) for side, cells in zip(img_size, grid, strict=True)
    )


def grid_of(size: Size, patch: Size, what: str = "image") -> Size:
    """The lookup grid of an input of `size`; raises a one-line ValueError if `patch` does not divide it."""
    if any(s % p or s < p for s, p in zip(size, patch, strict=True)):
        nearest = tuple(max(p, floor(s / p + 0.5) * p) for s, p in zip(size, patch, strict=True))
        raise ValueError(
            f"{what} size {tuple(size)} is not a multiple of the patch size {tuple(patch)}: resize to {nearest}"
        )
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def sincos_positions(size: tuple[int, int], dim: int, device: torch.device | str | None = None) -> Tensor:
    """Codes of the tokens' places in the image, by sines and cosines; a place has the same code in every grid.

    Args:
        size: Grid (rows, columns).
        dim: Width of the code. A quarter each goes to the sines and cosines of the centres' y and x, with 0.25 to 1.5
            periods per image. The rest of a width that 4 does not divide is zero.
        device: Device of the result.

    Returns:
        `(rows * columns, dim)`.
    """
    each = dim // 4
    angles = 2 * pi * torch.linspace(0.25, 1.5, max(each, 1), device=device)[:each]
    y, x = ((torch.arange(side, device=device) + 0.5)[:, None] / side * angles for side in size)  # (side, dim / 4)
    y = y[:, None].expand(-1, size[1], -1)  # (rows, dim / 4) -> (rows, columns, dim / 4)
    x = x[None].expand(size[0], -1, -1)  # (columns, dim / 4) -> (rows, columns, dim / 4)
    waves = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1).flatten(0, 1)  # (rows columns, 4 (dim / 4))
    return torch.nn.functional.pad(waves, (0, dim - 4 * each))


def size_name(size: Size) -> str:
    """A grid as text, `(3, 3)` as "3x3" and `(2, 5, 5)` as "2x5x5"."""
    return "x".join(map(str, size))


def parse_size(text: str) -> Size:
    """The grid of a text such as "3x3", "2x5x5" or "5" (which means "5x5").

    Raises:
        ValueError: For any other text, in one line.
    """
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"compressed size {text!r} is not of the form 3x3 (or 2x5x5 for clips): give positive numbers")
    size = tuple(int(part) for part in parts)
    return size * 2 if len(size) == 1 else size


class Tokens(NamedTuple):
    """The tokens that a backbone returns.

    Attributes:
        compressed: Compressed tokens `(B, M, D)`; None where they were not asked for, or the model has none.
        lookup: Lookup tokens `(B, N, D)`; None where they were not asked for.
        compressed_size: Grid of the compressed tokens.
        grid_size: Grid of the lookup tokens.
        attention: Attention `(B, H, M, N)` of a block; None where it was not asked for.
    """

    compressed: Tensor | None
    lookup: Tensor | None
    compressed_size: Size | None
    grid_size: Size
    attention: Tensor | None = None


def to_2tuple(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) from an int or a pair."""
    try:
        pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    except TypeError:  # a list of lists, or nothing to count
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"expected a positive size or a (height, width) pair, got {value!r}")
    return pair
