"""The token resize against torch's interpolation and against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lookupvit.grid import check_compressed_size, grid_of, resize_matrix, resize_tokens, sincos_positions


def as_tokens(x):
    return x.flatten(2).transpose(1, 2)  # (B, D, *grid) -> (B, N, D)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("sizes", [((14, 14), (5, 5)), ((14, 9), (3, 4)), ((6, 8), (6, 3)), ((3, 5), (7, 9))], ids=str)
def test_equals_interpolate_2d(sizes, antialias):
    old, new = sizes
    x = torch.randn(2, 4, *old, dtype=torch.float64)
    expected = F.interpolate(x, new, mode="bilinear", align_corners=False, antialias=antialias)
    torch.testing.assert_close(resize_tokens(as_tokens(x), old, new, antialias), as_tokens(expected))


def test_equals_interpolate_3d():
    x = torch.randn(2, 4, 8, 6, 9, dtype=torch.float64)
    expected = F.interpolate(x, (3, 4, 12), mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_tokens(as_tokens(x), (8, 6, 9), (3, 4, 12), antialias=False), as_tokens(expected))


def test_by_hand():
    # 4 cells to 2: centres at 0.5 and 2.5, triangle of half-width 2: weights 0.75, 0.75, 0.25, 0 over 1.75
    matrix = resize_matrix(4, 2, True, torch.float64, torch.device("cpu"))
    expected = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]], dtype=torch.float64) / 7
    torch.testing.assert_close(matrix, expected)


def test_equal_sizes_are_the_identity_and_constants_stay():
    x = torch.randn(2, 12, 3)
    assert torch.equal(resize_tokens(x, (3, 4), (3, 4)), x)
    constant = torch.ones(1, 12, 1)
    torch.testing.assert_close(resize_tokens(constant, (3, 4), (2, 7)), torch.ones(1, 14, 1))


def test_cache_survives_tracing():
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = torch.device("cpu")
    with FakeTensorMode():
        resize_matrix(11, 3, True, torch.float32, device)
    assert type(resize_matrix(11, 3, True, torch.float32, device)) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [((14, 14), (5, 5)), ((8, 14, 9), (4, 3, 9)), ((3, 3), (3, 3))], ids=str)
def test_under_autocast_it_works_in_float32(sizes, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, math.prod(sizes[0]), 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = resize_tokens(x, *sizes)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), resize_tokens(x.double(), *sizes), rtol=1e-6, atol=1e-6)
    assert resize_tokens(x, *sizes).dtype == dtype  # without autocast, as it comes


def test_errors_are_one_line():
    with pytest.raises(ValueError, match="give as many axes"):
        resize_tokens(torch.zeros(1, 4, 1), (2, 2), (1, 1, 1))
    with pytest.raises(ValueError, match="expected 9"):
        resize_tokens(torch.zeros(1, 4, 1), (3, 3), (2, 2))
    with pytest.raises(ValueError, match="does not fit the lookup grid"):
        check_compressed_size((0, 2), (4, 4))
    with pytest.raises(ValueError, match=r"resize to \(224, 16\)"):
        grid_of((225, 3), (16, 16))


def test_positions_are_of_points_not_of_grids():
    codes = sincos_positions((1, 3), 8)
    # angles of 0.25 and 1.5 periods an image; the middle token's centre is (0.5, 0.5)
    y, x = [math.pi / 4, 1.5 * math.pi], [math.pi / 4, 1.5 * math.pi]
    expected = [f(angle) for axis in (y, x) for f in (math.sin, math.cos) for angle in axis]
    torch.testing.assert_close(codes[1], torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(sincos_positions((3, 3), 8)[4], codes[1])  # the same point of a finer grid
    assert torch.equal(sincos_positions((2, 2), 10)[:, 8:], torch.zeros(4, 2))
    assert torch.unique(sincos_positions((5, 7), 16).round(decimals=4), dim=0).shape == (35, 16)
