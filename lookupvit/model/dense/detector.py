"""Detectors: torchvision's Mask R-CNN, Faster R-CNN and FCOS on a plain backbone with a simple feature pyramid.

Anchors, losses, sampling and suppression are torchvision's; the heads have ViTDet's form (arXiv 2203.16527).

Letters: B images, (Y, X) pixels, C channels of the pyramid, n objects of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from lookupvit.checks import check_choice, check_positive
from lookupvit.grid import Size, to_2tuple
from lookupvit.model.dense.features import DenseFeatures, DenseModel
from lookupvit.model.dense.pyramid import SimpleFeaturePyramid, pyramid_strides
from lookupvit.model.dense.rcnn import OPTIONS, Padding, PyramidBackbone, build_fcos, build_rcnn
from lookupvit.model.dense.segmenter import check_no_head, stride_of
from lookupvit.model.zoo import create_model, model_arguments
from lookupvit.sizes import MODELS

DETECTORS = tuple(OPTIONS)
PADS = ("native", "batch")
_MASKS_AT_ONCE = 16  # that are pasted as floats of the image's size


class Detector(DenseModel):
    """Finds objects: boxes with classes and, with Mask R-CNN, a mask of each.

    Images of several sizes make a batch: each, normalised already, is padded with zeros at the bottom and on the right,
    to one size that all strides of the pyramid divide.

    Args:
        name: Backbone, one of `lookupvit.list_models()`, of images.
        num_classes: Number of classes without the background; labels count from 1.
        img_size: Native image size, int or (height, width); None keeps that of the name. It is rounded up to a
            multiple of the coarsest stride.
        compressed_size: Compressed grid of a LookupViT; `{"stride": 64}` for one token per 64 pixels along each axis of
            the padded image; None keeps that of the name.
        detector: "mask_rcnn", "faster_rcnn" or "fcos".
        out_channels: C, of the pyramid and of the heads' convolutions; 32 divides it for FCOS.
        strides: Strides of the pyramid, finest first. By default ViTDet's (4, 8, 16 and 32 for patches of 16, with one
            more level of 64 for the proposals); for FCOS, which predicts at each place of each map, 8 to 128.
        box_convs: Convolutions of the box head, before its linear layer.
        box_dim: Width of that linear layer.
        mask_convs: Convolutions of the mask head.
        pad: To what the images are padded: "native", the native image size where they all fit into it, as ViTDet does,
            so that positions and compressed tokens mean the same in each batch; or "batch", the largest image of the
            batch, which costs less.
        fuse_compressed: Whether the compressed tokens are resized to the lookup grid and added to the map.
        drop_path_rate: Stochastic depth of the backbone's last block; it grows linearly from the first.
        args: Further arguments of `lookupvit.create_model`.
        detector_args: Further arguments of torchvision's class, numbers, such as `{"box_detections_per_img": 50}`.

    Raises:
        ValueError: For options that do not exist or do not fit, in one line.
    """

    prefix = "net.backbone.features."

    def __init__(
        self,
        name: str,
        num_classes: int,
        img_size: int | tuple[int, int] | None = None,
        *,
        compressed_size: int | Size | dict[str, int] | None = None,
        detector: str = "mask_rcnn",
        out_channels: int = 256,
        strides: Sequence[int] | None = None,
        box_convs: int = 4,
        box_dim: int = 1024,
        mask_convs: int = 4,
        pad: str = "native",
        fuse_compressed: bool = False,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        detector_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("detector", detector, DETECTORS)
        check_choice("pad", pad, PADS)
        check_positive(num_classes=num_classes, out_channels=out_channels, box_dim=box_dim)
        for option in detector_args or {}:
            check_choice("detector_args", option, OPTIONS[detector])
        if detector == "fcos" and out_channels % 32:
            raise ValueError(f"out_channels={out_channels}: the groups of FCOS's norms need a multiple of 32")
        known = model_arguments(name)
        arguments = {**MODELS[name][1], **(args or {})}
        patch_y, patch_x = to_2tuple(arguments["patch_size"])
        if patch_y != patch_x:
            raise ValueError(f"patches of {patch_y}x{patch_x} pixels give no square anchors: take a square patch_size")
        if strides is None:
            finest = pyramid_strides(patch_y)
            strides = finest if detector != "fcos" else tuple(2 * finest[0] * 2**step for step in range(5))
        coarsest = max(strides) * (1 if detector == "fcos" else 2)  # the proposals' own level
        native = to_2tuple(arguments["img_size"] if img_size is None else img_size)
        given = {"drop_path_rate": drop_path_rate, **(args or {}), "num_classes": 0}
        given["img_size"] = tuple(-(-side // coarsest) * coarsest for side in native)
        if "compressed_size" in known:
            given = {"head": "both" if fuse_compressed else "lookup", **given}
        stride = stride_of(compressed_size)
        if compressed_size is not None:
            given["compressed_size"] = compressed_size if stride is None else 1
        features = DenseFeatures(create_model(name, **given), fuse_compressed, compressed_stride=stride)
        pyramid = SimpleFeaturePyramid(features.embed_dim, patch_y, out_channels, strides)
        self.detector, self.num_classes = detector, num_classes
        backbone, options = PyramidBackbone(features, pyramid, detector != "fcos"), dict(detector_args or {})
        if detector == "fcos":
            self.net = build_fcos(backbone, num_classes, options)
        else:
            self.net = build_rcnn(
                backbone, num_classes, detector == "mask_rcnn", box_convs, box_dim, mask_convs, options
            )
        self.net.transform = Padding(features.img_size if pad == "native" else (1, 1), coarsest)
        if stride is not None:
            self.compressed_size = features.size_for(self.img_size)
        self.arguments = {
            "name": name,
            "num_classes": num_classes,
            "img_size": list(self.img_size),
            "compressed_size": compressed_size,
            "detector": detector,
            "out_channels": out_channels,
            "strides": list(strides),
            "box_convs": box_convs,
            "box_dim": box_dim,
            "mask_convs": mask_convs,
            "pad": pad,
            "fuse_compressed": fuse_compressed,
            "args": args,
            "detector_args": detector_args,
        }

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
        images: Sequence[Tensor],
        compressed_size: int | Size | None = None,
        head: None = None,
        targets: list[dict[str, Tensor]] | None = None,
        output_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: For each image `(3, Y, X)`, normalised.
            compressed_size: Compressed grid of this call; the backbone's own by default.
            head: Of classifiers; None here.
            targets: In training, for each image "boxes" `(n, 4)` in pixels (x1, y1, x2, y2), "labels" `(n,)` from 1
                and, with Mask R-CNN, "masks" `(n, Y, X)`; n may be 0. Crowds are to be left out.
            output_sizes: The size (height, width) that the detections of each image are given at; its own by default.

        Returns:
            In training a dict of scalar losses. Otherwise for each image "boxes" `(n, 4)`, "scores" `(n,)` in falling
            order, "labels" `(n,)` and, with Mask R-CNN, "masks" `(n, height, width)`, bool.
        """
        check_no_head(head)
        self.net.backbone.compressed_size = compressed_size
        if targets is not None and self.detector == "fcos":  # without a background its classes count from 0
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        found = self.net(images, targets)
        return found if self.training else self._finished(found, images, output_sizes)

    def detect_at_sizes(
        self,
        images: Sequence[Tensor],
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
        self, found: list[dict[str, Tensor]], images: Sequence[Tensor], output_sizes: Sequence[tuple[int, int]] | None
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

    def forward_fixed(
        self, images: Sequence[Tensor], compressed_size: int | Size | None = None, head: None = None
    ) -> Tensor:
        """Runs every layer, but on a fixed number of regions: for counts of what a call costs.

        What depends on the picture is left out: which regions are proposed, cut out and suppressed. There are as many
        as there can be: for each image 1000 proposals and 100 detections (or what `detector_args` say), in training
        512 regions, a quarter of them with masks.

        Returns:
            The sum of all that the heads predict, a scalar.
        """
        check_no_head(head)
        self.net.backbone.compressed_size = compressed_size
        maps = list(self.net.backbone(self.net.transform(images)[0].tensors).values())
        if self.detector == "fcos":
            return sum(output.sum() for output in self.net.head(maps).values())
        found = [output for outputs in self.net.rpn.head(maps) for output in outputs]
        for count, pool, layers, predictor in self.regions(self.training):
            size = (len(images) * count, maps[0].shape[1], *pool.output_size)
            predicted = predictor(layers(maps[0].new_ones(()).expand(size) * maps[0].mean()))
            found += predicted if isinstance(predicted, tuple) else [predicted]
        return sum(output.sum() for output in found)

    def regions(self, training: bool) -> list[tuple[int, nn.Module, nn.Module, nn.Module]]:
        """Most regions of each image, their pooling, head and predictor: of boxes and, if there are any, of masks."""
        heads = self.net.roi_heads
        if training:
            boxes = heads.fg_bg_sampler.batch_size_per_image
            masks = int(boxes * heads.fg_bg_sampler.positive_fraction)
        else:
            boxes, masks = self.net.rpn._post_nms_top_n["testing"], heads.detections_per_img
        found = [(boxes, heads.box_roi_pool, heads.box_head, heads.box_predictor)]
        return found + [(masks, heads.mask_roi_pool, heads.mask_head, heads.mask_predictor)] * self.has_masks

    def padded(self, img_size: Sequence[int]) -> tuple[int, int]:
        """The size (height, width) that an image of (height, width) pixels is padded to."""
        return self.net.transform.padded(img_size)
