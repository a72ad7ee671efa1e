"""Fits position embeddings, patch kernels and tubelet kernels to a model of another size.

Every resize is linear and separable, with one small float64 matrix for each axis. Position embeddings that are enlarged
and then reduced to their old size are unchanged.

Letters: D embed_dim, C channels, (t, y, x) kernel, (t, h, w) token grid.
"""

from functools import lru_cache
from math import isqrt, prod

import torch
from torch import Tensor

from lookupvit.checks import check_choice, check_positive
from lookupvit.grid import Size, resize_matrix


@lru_cache(maxsize=64)
def _position_matrix(old: int, new: int) -> Tensor:
    """Matrix `(new, old)`: linear interpolation to enlarge; to reduce, its least-squares inverse."""
    cpu = torch.device("cpu")
    if new >= old:
        return resize_matrix(old, new, True, torch.float64, cpu)
    return torch.linalg.pinv(resize_matrix(new, old, True, torch.float64, cpu))


@lru_cache(maxsize=64)
def _kernel_matrix(old: int, new: int) -> Tensor:
    """Matrix `(new, old)`: pseudo-inverse of the transposed resize; keeps <kernel, patch> if both are resized."""
    resize = resize_matrix(old, new, True, torch.float64, torch.device("cpu"))
    return torch.linalg.pinv(resize.t())


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    return torch.tensordot(x, matrix, dims=([axis], [1])).movedim(-1, axis)


def resize_positions(positions: Tensor, from_grid: Size, to_grid: Size) -> Tensor:
    """Position embeddings for another token grid of as many axes.

    An axis that grows is interpolated linearly, exactly as the model itself does for a larger image. An axis that
    shrinks gets the embeddings that would grow into the old ones as nearly as possible, so that growing and shrinking
    back is the identity. (For a smaller image the model itself averages instead.)

    Args:
        positions: `(1, prod(from_grid), D)`.
        from_grid: Their grid.
        to_grid: New grid.

    Returns:
        `(1, prod(to_grid), D)`, of the same type.

    Raises:
        ValueError: If the grids have other numbers of axes, or `positions` are not of `from_grid`.
    """
    if len(from_grid) != len(to_grid) or positions.ndim != 3 or positions.shape[1] != prod(from_grid):
        raise ValueError(f"positions {tuple(positions.shape)} of a grid {from_grid} cannot be resized to {to_grid}")
    x = positions.double().reshape(*from_grid, positions.shape[2])  # (1, N, D) -> (h, w, D)
    for axis, (old, new) in enumerate(zip(from_grid, to_grid, strict=True)):
        if old != new:
            x = _along(x, _position_matrix(old, new), axis)
    return x.reshape(1, prod(to_grid), -1).to(positions.dtype)  # (h', w', D) -> (1, N', D)


def resize_kernel(kernel: Tensor, size: Size) -> Tensor:
    """A patch or tubelet kernel for another patch size, as FlexiViT (arXiv 2212.08013) does it.

    If a patch is enlarged linearly together with its kernel, the feature is exactly the same. If both are reduced, it
    is the nearest one in the sense of least squares over patches of white noise.

    Args:
        kernel: `(D, C, y, x)` or `(D, C, t, y, x)`.
        size: (y, x) or (t, y, x), as many axes as the kernel has.

    Returns:
        `(D, C, *size)`, of the same type.

    Raises:
        ValueError: For another number of axes.
    """
    if kernel.ndim != len(size) + 2:
        raise ValueError(f"a kernel of shape {tuple(kernel.shape)} has no {len(size)} axes to resize to {size}")
    x = kernel.double()
    for axis, new in enumerate(size, start=2):
        if x.shape[axis] != new:
            x = _along(x, _kernel_matrix(x.shape[axis], new), axis)
    return x.to(kernel.dtype)


def fit_kernel(kernel: Tensor, size: Size, method: str = "central_frame") -> Tensor:
    """A kernel `(D, C, ...)` for a model whose patch is `size`: resized, and inflated from a patch to a tubelet.

    Raises:
        ValueError: For a tubelet where the model takes images.
    """
    if kernel.ndim == 5 and len(size) == 2:
        raise ValueError(
            f"the weights' patch kernel {tuple(kernel.shape)} is a video model's, this model takes images: "
            "name a video model, such as lookupvivit_base_joint_patch16x2_224"
        )
    if kernel.ndim == 4 and len(size) == 3:
        return inflate_patch_embed(resize_kernel(kernel, size[1:]), size[0], method)
    return resize_kernel(kernel, size)


def fit_positions(positions: Tensor, from_grid: Size, to_grid: Size) -> Tensor:
    """Positions `(1, N, D)` for the grid of a model; those of an image are repeated at every time index of a clip."""
    if len(to_grid) == len(from_grid) + 1:
        return resize_positions(positions, from_grid, to_grid[1:]).repeat(1, to_grid[0], 1)  # (1, h w, D) t times
    return resize_positions(positions, from_grid, to_grid)


def guess_grid(count: int, own: Size, axes: int) -> Size:
    """The token grid of a number of positions, for a file that does not state it.

    Args:
        count: Number of positions.
        own: Grid of the model that is to take them.
        axes: 2 or 3, from the file's patch kernel.

    Returns:
        The model's own grid if it has as many positions, else a square one. For clips a square at the model's number of
        time indices, or the model's height and width at another number of time indices.

    Raises:
        ValueError: Where nothing fits or two grids do, in one line.
    """
    space = own[-2:]
    if axes == 2:
        grids = {space} if count == prod(space) else _square(count)
    elif count == prod(own):
        grids = {own}
    else:
        grids = {(own[0], *side) for side in _square(count / own[0])}
        if count % prod(space) == 0:
            grids.add((count // prod(space), *space))
    if len(grids) != 1:
        why = "are no square of tokens" if not grids else f"fit {' and '.join(map(str, sorted(grids)))}"
        raise ValueError(
            f"the weights' {count} positions {why}: say which grid they are of, grid=({'t, ' * (axes - 2)}h, w)"
        )
    return grids.pop()


def _square(count: float) -> set[Size]:
    side = isqrt(int(count))
    return {(side, side)} if side and side * side == count else set()


INFLATIONS = ("central_frame", "average")


def inflate_patch_embed(weight: Tensor, t: int, method: str = "central_frame") -> Tensor:
    """A tubelet kernel made from the patch kernel of an image model.

    Args:
        weight: `(D, C, y, x)` of a patch embedding.
        t: Frames of a tubelet.
        method: "central_frame" puts the patch kernel at frame t // 2 and zeros elsewhere. "average" puts the patch
            kernel divided by t at every frame, so that a still clip gives the features of the image.

    Returns:
        `(D, C, t, y, x)`, in new memory.

    Raises:
        ValueError: For an unknown method, a `t` below 1, or a weight that is no patch kernel.
    """
    check_choice("method", method, INFLATIONS)
    check_positive(t=t)
    if weight.ndim != 4:
        raise ValueError(f"a patch kernel has the axes (D, C, y, x), this one has shape {tuple(weight.shape)}")
    if method == "average":
        return weight.unsqueeze(2).repeat(1, 1, t, 1, 1) / t  # (D, C, y, x) -> (D, C, t, y, x)
    kernel = weight.new_zeros(*weight.shape[:2], t, *weight.shape[2:])
    kernel[:, :, t // 2] = weight
    return kernel
