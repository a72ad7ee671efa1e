"""Detectors: torchvision's Mask R-CNN, Faster R-CNN and FCOS on a plain backbone with a simple feature pyramid.

Anchors, losses, sampling and suppression are torchvision's; the heads have ViTDet's form (arXiv 2203.16527).

Letters: B images, (Y, X) pixels, C channels of the pyramid, n objects of an image.
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
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from lookupvit.checks import check_choice, check_positive
from lookupvit.grid import Size
from lookupvit.model.dense.pyramid import SimpleFeaturePyramid, pyramid_strides

DETECTORS = ("mask_rcnn", "faster_rcnn", "fcos")
PADS = ("native", "batch")
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
_MASKS_AT_ONCE = 16  # that are pasted as floats of the image's size


class Detector(nn.Module):
    """Finds objects: boxes with classes and, with Mask R-CNN, a mask of each.

    Images of several sizes make a batch: each is padded with zeros at the bottom and on the right, to one size that
    all strides of the pyramid divide. They are taken as they come, normalised and in the size that is wanted.

    Args:
        features: Backbone that gives maps `(B, D, h, w)`: a `DenseFeatures`.
        num_classes: Number of classes without the background; labels count from 1.
        detector: "mask_rcnn", "faster_rcnn" or "fcos".
        out_channels: C, of the pyramid and of the heads' convolutions; 32 divides it for FCOS.
        strides: Strides of the pyramid, finest first. By default ViTDet's (4, 8, 16 and 32 for patches of 16, with one
            more level of 64 for the proposals); for FCOS, which predicts at each place of each map, 8 to 128.
        box_convs: Convolutions of the box head, before its linear layer.
        box_dim: Width of that linear layer.
        mask_convs: Convolutions of the mask head.
        pad: To what the images are padded: "native", the backbone's own image size where they all fit into it, as
            ViTDet does, so that positions and compressed tokens mean the same in each batch; or "batch", the largest
            image of the batch, which costs less.
        **options: Further arguments of torchvision's class, such as `box_detections_per_img`.

    Raises:
        ValueError: For options that do not exist or do not fit, in one line.
    """

    def __init__(
        self,
        features: nn.Module,
        num_classes: int,
        detector: str = "mask_rcnn",
        out_channels: int = 256,
        strides: Sequence[int] | None = None,
        box_convs: int = 4,
        box_dim: int = 1024,
        mask_convs: int = 4,
        pad: str = "native",
        **options: Any,
    ) -> None:
        super().__init__()
        check_choice("detector", detector, DETECTORS)
        for name in options:
            check_choice("detector_args", name, OPTIONS[detector])
        check_choice("pad", pad, PADS)
        check_positive(num_classes=num_classes, out_channels=out_channels, box_dim=box_dim)
        patch_y, patch_x = features.stride
        if patch_y != patch_x:
            raise ValueError(f"patches of {patch_y}x{patch_x} pixels give no square anchors: take a square patch_size")
        if detector == "fcos" and out_channels % 32:
            raise ValueError(f"out_channels={out_channels}: the groups of FCOS's norms need a multiple of 32")
        if strides is None:
            finest = pyramid_strides(patch_y)
            strides = finest if detector != "fcos" else tuple(2 * finest[0] * 2**step for step in range(5))
        pyramid = SimpleFeaturePyramid(features.embed_dim, patch_y, out_channels, strides)
        self.detector, self.num_classes = detector, num_classes
        backbone = PyramidBackbone(features, pyramid, proposals=detector != "fcos")
        if detector == "fcos":
            self.net = _fcos(backbone, num_classes, options)
        else:
            self.net = _rcnn(backbone, num_classes, detector == "mask_rcnn", box_convs, box_dim, mask_convs, options)
        self.net.transform = Padding(features.img_size if pad == "native" else (1, 1), max(backbone.strides))

    @property
    def features(self) -> nn.Module:
        """The backbone."""
        return self.net.backbone.features

    @property
    def has_masks(self) -> bool:
        """Whether it predicts masks."""
        return self.detector == "mask_rcnn"

    def forward(
        self,
        images: list[Tensor],
        targets: list[dict[str, Tensor]] | None = None,
        compressed_size: int | Size | None = None,
        output_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: For each image `(3, Y, X)`, normalised.
            targets: In training, for each image "boxes" `(n, 4)` in pixels (x1, y1, x2, y2), "labels" `(n,)` from 1
                and, with Mask R-CNN, "masks" `(n, Y, X)`; n may be 0. Crowds are to be left out.
            compressed_size: Compressed grid of this call; the backbone's own by default.
            output_sizes: The size (height, width) that the detections of each image are given at; its own by default.

        Returns:
            In training a dict of scalar losses. Otherwise for each image "boxes" `(n, 4)`, "scores" `(n,)` in falling
            order, "labels" `(n,)` and, with Mask R-CNN, "masks" `(n, height, width)`, bool.
        """
        backbone = self.net.backbone
        backbone.compressed_size = compressed_size
        if targets is not None and self.detector == "fcos":  # without a background its classes count from 0
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        found = self.net(images, targets)
        return found if self.training else self._finished(found, images, output_sizes)

    def detect_at_sizes(
        self,
        images: list[Tensor],
        sizes: Sequence[Size | None],
        output_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Detections at several compressed sizes, of images that are padded and embedded once; see `forward`."""
        batch = self.net.transform(images)[0].tensors
        backbone, results = self.net.backbone, []
        try:
            for maps in self.features.forward_sizes(batch, sizes):
                backbone.given = maps.features
                results.append(self._finished(self.net(images), images, output_sizes))
        finally:
            backbone.given = None
        return results

    def _finished(
        self, found: list[dict[str, Tensor]], images: list[Tensor], output_sizes: Sequence[tuple[int, int]] | None
    ) -> list[dict[str, Tensor]]:
        """Brings boxes and masks to the output's size: masks `(n, 1, 28, 28)` to `(n, height, width)`."""
        own = [tuple(image.shape[-2:]) for image in images]
        for one, size, output in zip(found, own, output_sizes or own, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], size, output)
            one["labels"] = one["labels"] + (self.detector == "fcos")
            if "masks" in one:
                pairs = zip(one["masks"].split(_MASKS_AT_ONCE), one["boxes"].split(_MASKS_AT_ONCE), strict=True)
                pasted = [paste_masks_in_image(masks, boxes, output)[:, 0] > 0.5 for masks, boxes in pairs]
                one["masks"] = torch.cat(pasted)
        return found

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {f"{_FEATURES}{name}" for name in self.features.no_weight_decay()}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, and what reads the map."""
        return self.features.num_layers

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: those of the backbone, and the last for pyramid and heads."""
        if name.startswith(_FEATURES):
            return self.features.layer_id(name.removeprefix(_FEATURES))
        return self.num_layers - 1


_FEATURES = "net.backbone.features."


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
        sides = [
            max(least, *(image.shape[axis] for image in images))
            for axis, least in ((1, self.least[0]), (2, self.least[1]))
        ]
        height, width = (-(-side // size_divisible) * size_divisible for side in sides)
        return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        """The detections as they are."""
        return result


def _rcnn(
    backbone: PyramidBackbone,
    num_classes: int,
    masks: bool,
    box_convs: int,
    box_dim: int,
    mask_convs: int,
    options: dict,
) -> FasterRCNN:
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
    return (MaskRCNN if masks else FasterRCNN)(backbone, **{**heads, **options})


def _fcos(backbone: PyramidBackbone, num_classes: int, options: dict) -> FCOS:
    anchors = AnchorGenerator(tuple((stride,) for stride in backbone.strides), ((1.0,),) * len(backbone.strides))
    return FCOS(backbone, num_classes, anchor_generator=anchors, **{"score_thresh": 0.05, **options})
