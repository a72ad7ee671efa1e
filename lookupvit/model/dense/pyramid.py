"""ViTDet's simple feature pyramid (arXiv 2203.16527): maps of several strides from the one map of a plain backbone.

Letters: B batch, D channels of the backbone, C channels of the pyramid, (h, w) grid of the one map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import log2

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from lookupvit.checks import check_positive


class SimpleFeaturePyramid(nn.Module):
    """Maps of several strides, each made from the one map alone.

    A finer map comes from 2x2 deconvolutions of stride 2, which halve the channels, with LayerNorm and GELU between
    them; a coarser one from 2x2 max pooling. A 1x1 and a 3x3 convolution without biases, with a LayerNorm over the
    channels after each, bring every map to C channels.

    Args:
        in_channels: D.
        stride: Stride of the one map in pixels: the backbone's patch size.
        out_channels: C.
        strides: Strides of the maps, finest first, each a power of two times `stride`. By default ViTDet's for its
            patches of 16, which are 4, 8, 16 and 32, in proportion to `stride`.

    Raises:
        ValueError: For strides that are not of that form, or a map so fine that no channel would be left; one line.
    """

    def __init__(
        self, in_channels: int, stride: int, out_channels: int = 256, strides: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, stride=stride, out_channels=out_channels)
        strides = pyramid_strides(stride) if strides is None else tuple(strides)
        self.stride, self.strides, self.out_channels = stride, strides, out_channels
        self.levels = nn.ModuleList(
            _level(in_channels, out_channels, doublings(stride, own, in_channels)) for own in strides
        )

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """The one map `(B, D, h, w)` to maps `(B, C, h stride / s, w stride / s)` for each stride s.

        Their names are "0", "1", ..., finest first, as torchvision's detectors have them.
        """
        return OrderedDict((str(place), level(x)) for place, level in enumerate(self.levels))


def pyramid_strides(stride: int) -> tuple[int, ...]:
    """ViTDet's strides in proportion to the backbone's: a quarter, a half, one and two times as large.

    Raises:
        ValueError: If 4 does not divide `stride`, in one line.
    """
    if stride % 4:
        raise ValueError(f"a map of stride {stride} has no quarter of it: give --model.strides, such as [{stride}]")
    return stride // 4, stride // 2, stride, 2 * stride


def doublings(stride: int, own: int, channels: int) -> int:
    """How often a map is to be doubled in size to come from `stride` to stride `own`; negative for halvings.

    Raises:
        ValueError: If no number of doublings does it, or `channels` cannot be halved so often, in one line.
    """
    times = log2(stride / own) if own > 0 else 0.5
    if times != int(times):
        raise ValueError(
            f"strides: {own} is not {stride}, the stride of the backbone's map, times or over a power of two: "
            f"give such as {stride // 2 or 1}, {stride}, {2 * stride}"
        )
    if times > 0 and channels % 2 ** int(times):
        raise ValueError(
            f"strides: {own} halves the backbone's {channels} channels {int(times)} times, which does not divide: "
            f"leave it out, or choose a width that {2 ** int(times)} divides"
        )
    return int(times)


def _level(in_channels: int, out_channels: int, times: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2) for _ in range(-times)]
    width = in_channels
    for step in range(times):
        if step:
            layers += [LayerNorm2d(width, eps=1e-6), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    layers += [nn.Conv2d(width, out_channels, 1, bias=False), LayerNorm2d(out_channels, eps=1e-6)]
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels, eps=1e-6)]
    return nn.Sequential(*layers)
