"""The parts of a detector: torchvision's classes on a backbone with a pyramid, and padding in place of their resize.

Letters: B images, (Y, X) pixels, D channels of the backbone, C of the pyramid.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from lookupvit.grid import Size
from lookupvit.model.dense.pyramid import SimpleFeaturePyramid

_RCNN = tuple(
    name
    for name, of in signature(FasterRCNN).parameters.items()
    if name.startswith(("rpn_", "box_", "bbox_")) and isinstance(of.default, int | float | tuple)
)
# Further arguments that torchvision's classes take, numbers all of them.
OPTIONS = {
    "mask_rcnn": _RCNN,
    "faster_rcnn": _RCNN,
    "fcos": ("center_sampling_radius", "score_thresh", "nms_thresh", "detections_per_img", "topk_candidates"),
}


class PyramidBackbone(nn.Module):
    """A backbone and its pyramid, as torchvision's detectors take them.

    Args:
        features: Backbone that gives one map.
        pyramid: What makes several of it.
        proposals: Whether one more map, every other pixel of the coarsest, serves the proposals.

    Attributes:
        compressed_size: Compressed grid of the next calls; None for the backbone's own.
        given: A map `(B, D, h, w)` that the next calls take in place of the backbone's; None: none.
        out_channels: C.
        strides: Of all maps.
    """

    def __init__(self, features: nn.Module, pyramid: SimpleFeaturePyramid, proposals: bool) -> None:
        super().__init__()
        self.features, self.pyramid = features, pyramid
        self.out_channels, self.proposals = pyramid.out_channels, proposals
        self.strides = (*pyramid.strides, *([2 * pyramid.strides[-1]] if proposals else []))
        self.compressed_size: int | Size | None = None
        self.given: Tensor | None = None

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Images `(B, 3, Y, X)` to maps `(B, C, Y / s, X / s)` for each stride s, finest first."""
        maps = self.pyramid(self.features(images, self.compressed_size) if self.given is None else self.given)
        if self.proposals:
            maps["pool"] = F.max_pool2d(maps[next(reversed(maps))], 1, 2)
        return maps


class Padding(GeneralizedRCNNTransform):
    """Pads images to one size and changes nothing else: neither pixels nor targets nor detections.

    Args:
        least: Least size (height, width) that is padded to.
        divisor: Padded sizes are multiples of it.
    """

    def __init__(self, least: tuple[int, int], divisor: int) -> None:
        super().__init__(1, 1, [0.0] * 3, [1.0] * 3, size_divisible=divisor)
        self.least = tuple(least)

    def normalize(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict | None]:
        """Both as they are."""
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Images `(3, Y, X)` to one batch `(B, 3, Y', X')`."""
        height, width = self.padded([max(image.shape[axis] for image in images) for axis in (1, 2)])
        return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])

    def padded(self, img_size: Sequence[int]) -> tuple[int, int]:
        """The size that an image of (height, width) pixels is padded to."""
        sides = [max(pair) for pair in zip(img_size, self.least, strict=True)]
        return tuple(-(-side // self.size_divisible) * self.size_divisible for side in sides)

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        """The detections as they are."""
        return result


def build_rcnn(
    backbone: PyramidBackbone,
    num_classes: int,
    masks: bool,
    box_convs: int,
    box_dim: int,
    mask_convs: int,
    options: dict,
) -> FasterRCNN:
    """Mask R-CNN or Faster R-CNN with ViTDet's heads; see `Detector` for the arguments."""
    channels, norm = backbone.out_channels, partial(LayerNorm2d, eps=1e-6)
    names = [str(place) for place in range(len(backbone.pyramid.strides))]
    anchors = AnchorGenerator(
        tuple((8 * stride,) for stride in backbone.strides), ((0.5, 1.0, 2.0),) * len(backbone.strides)
    )
    heads = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * box_convs, [box_dim], norm_layer=norm),
        "box_predictor": FastRCNNPredictor(box_dim, num_classes + 1),
        "rpn_post_nms_top_n_train": 1000,
    }
    if masks:
        heads |= {
            "mask_roi_pool": MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
            "mask_head": MaskRCNNHeads(channels, [channels] * mask_convs, 1, norm_layer=norm),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
        }
    for name in ("rpn_head", "box_predictor", "mask_predictor"):
        if name in heads:
            heads[name].register_forward_hook(_in_float32)
    return (MaskRCNN if masks else FasterRCNN)(backbone, **{**heads, **options})


def build_fcos(backbone: PyramidBackbone, num_classes: int, options: dict) -> FCOS:
    """FCOS, with one place to predict at per cell; its labels count from 0."""
    anchors = AnchorGenerator(tuple((stride,) for stride in backbone.strides), ((1.0,),) * len(backbone.strides))
    net = FCOS(backbone, num_classes, anchor_generator=anchors, **{"score_thresh": 0.05, **options})
    net.head.register_forward_hook(_in_float32)
    return net


def _in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a head predicts, in float32 under autocast, too: bfloat16 would round a box at 1000 px to 4 px."""
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, output)
