"""The simple feature pyramid against one written by hand, in loops over pixels."""

import math

import pytest
import torch

from lookupvit.model.dense.pyramid import SimpleFeaturePyramid, pyramid_strides


def norm(pixel, layer):
    """LayerNorm over the channels of one pixel."""
    centred = pixel - pixel.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt() * layer.weight + layer.bias


def deconvolve(x, layer):
    """A deconvolution of kernel 2 and stride 2: each pixel becomes 2 x 2 pixels of its own."""
    height, width = x.shape[1:]
    y = torch.empty(layer.weight.shape[1], 2 * height, 2 * width, dtype=x.dtype)
    for i in range(2 * height):
        for j in range(2 * width):
            y[:, i, j] = layer.weight[:, :, i % 2, j % 2].T @ x[:, i // 2, j // 2] + layer.bias
    return y


def convolve(x, layer):
    """A convolution without bias, padded with zeros to the same size."""
    side = layer.weight.shape[2]
    height, width = x.shape[1:]
    y = torch.zeros(layer.weight.shape[0], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            for a in range(side):
                for b in range(side):
                    row, column = i + a - side // 2, j + b - side // 2
                    if 0 <= row < height and 0 <= column < width:
                        y[:, i, j] += layer.weight[:, :, a, b] @ x[:, row, column]
    return y


def each_pixel(x, function):
    return torch.stack([torch.stack([function(p) for p in row.T]) for row in x.permute(1, 0, 2)]).permute(2, 0, 1)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def pool(x):
    height, width = x.shape[1] // 2, x.shape[2] // 2
    return torch.stack(
        [
            torch.stack([x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax(dim=(1, 2)) for j in range(width)])
            for i in range(height)
        ]
    ).permute(2, 0, 1)


def by_hand(x, layers, ups, downs):
    """What one level makes of `x` (D, h, w); the layers stand in ViTDet's order."""
    layers = list(layers)
    for _ in range(downs):
        layers.pop(0)
        x = pool(x)
    for step in range(ups):
        if step:
            layer = layers.pop(0)
            layers.pop(0)
            x = gelu(each_pixel(x, lambda p, layer=layer: norm(p, layer)))
        x = deconvolve(x, layers.pop(0))
    for _ in range(2):
        x = convolve(x, layers.pop(0))
        layer = layers.pop(0)
        x = each_pixel(x, lambda p, layer=layer: norm(p, layer))
    assert not layers
    return x


@torch.no_grad()
def test_pyramid_is_that_of_vitdet_written_in_loops():
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(8, 16, 6).double()
    for parameter in pyramid.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 8, 2, 4, dtype=torch.float64)
    maps = pyramid(x)
    assert pyramid.strides == (4, 8, 16, 32) and list(maps) == ["0", "1", "2", "3"]
    steps = ((2, 0), (1, 0), (0, 0), (0, 1))
    for level, (ups, downs), found in zip(pyramid.levels, steps, maps.values(), strict=True):
        expected = torch.stack([by_hand(image, level, ups, downs) for image in x])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("stride", "strides", "sides"),
    [
        (16, None, (32, 16, 8, 4)),
        (8, None, (64, 32, 16, 8)),
        (8, (4, 8, 16, 32), (32, 16, 8, 4)),
        (14, (14, 28), (9, 4)),
    ],
)
def test_strides_follow_the_patch_or_are_given(stride, strides, sides):
    pyramid = SimpleFeaturePyramid(8, stride, 4, strides)
    maps = pyramid(torch.randn(1, 8, 128 // stride, 128 // stride))
    assert tuple(x.shape[2] for x in maps.values()) == sides
    assert all(x.shape[:2] == (1, 4) for x in maps.values())


def test_parameters_of_b16_are_those_of_vitdet():
    # Deconvolutions 768 -> 384 -> 192 (with LayerNorm 384) and 768 -> 384; then, for each of 4 maps, 1x1 and 3x3
    # convolutions without biases and two LayerNorms of 256.
    finest = 768 * 384 * 4 + 384 + 2 * 384 + 384 * 192 * 4 + 192
    second = 768 * 384 * 4 + 384
    heads = sum(width * 256 + 2 * 256 + 9 * 256 * 256 + 2 * 256 for width in (192, 384, 768, 768))
    pyramid = SimpleFeaturePyramid(768, 16)
    assert sum(p.numel() for p in pyramid.parameters()) == finest + second + heads


@pytest.mark.parametrize(
    ("stride", "strides", "channels", "words"),
    [
        (16, (12,), 8, "strides: 12 is not 16"),
        (16, (0,), 8, "strides: 0 is not 16"),
        (16, (4,), 6, "halves the backbone's 6 channels 2 times"),
        (14, None, 8, "a map of stride 14 has no quarter"),
    ],
)
def test_strides_that_do_not_fit_are_one_line(stride, strides, channels, words):
    with pytest.raises(ValueError, match=words) as error:
        SimpleFeaturePyramid(channels, stride, 4, strides)
    assert "\n" not in str(error.value)


def test_strides_of_a_patch():
    assert pyramid_strides(16) == (4, 8, 16, 32)
    assert pyramid_strides(8) == (2, 4, 8, 16)
