"""Detectors on backbone and pyramid: shapes, padding, empty images, options, and a class that is torchvision's own."""

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lookupvit.model.dense.detector import DETECTORS, Detector
from lookupvit.model.flops import count_call_macs

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
HEADS = {"out_channels": 64, "box_convs": 1, "box_dim": 32, "mask_convs": 1}
LOOKUP, VIT = "lookupvit_tiny_patch16_224", "vit_tiny_patch16_224"


def make(detector="mask_rcnn", name=LOOKUP, num_classes=2, img_size=64, args=None, **options):
    torch.manual_seed(0)
    size = (2, 2) if name == LOOKUP else None
    given = {"compressed_size": size, "detector": detector, "args": {**SMALL, **(args or {})}, **HEADS, **options}
    return Detector(name, num_classes, img_size, **given)


def target(*boxes, size=(64, 64)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.tensor([1 + place % 2 for place in range(len(boxes))], dtype=torch.int64)
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": labels, "masks": masks}


IMAGES = [torch.randn(3, 64, 64), torch.randn(3, 40, 56), torch.randn(3, 33, 20)]
TARGETS = [target((4, 4, 30, 40), (20, 10, 60, 50)), target(size=(40, 56)), target((2, 3, 12, 30), size=(33, 20))]


@pytest.mark.parametrize("name", [LOOKUP, VIT])
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_parameter_learns_from_images_of_several_sizes(detector, name):
    model = make(detector, name)
    losses = model(IMAGES, targets=TARGETS)  # several objects, none, one
    assert len(losses) == {"mask_rcnn": 5, "faster_rcnn": 4, "fcos": 3}[detector]
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    unused = [name for name, p in model.named_parameters() if "features" in name and not p.grad.any()]
    assert not unused


@pytest.mark.parametrize("detector", DETECTORS)
def test_images_without_objects_alone(detector):
    model = make(detector)
    losses = model([IMAGES[1]], targets=[TARGETS[1]])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()  # every parameter has a gradient, if only of zero, as distributed training needs
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_lie_in_their_image_at_the_size_asked_for(detector):
    threshold = "score_thresh" if detector == "fcos" else "box_score_thresh"
    model = make(detector, detector_args={threshold: 0.0}).eval()
    with torch.no_grad():
        found = model(IMAGES)
        large = model(IMAGES, output_sizes=[(128, 128), (80, 112), (66, 40)])
    for image, one, twice in zip(IMAGES, found, large, strict=True):
        height, width = image.shape[1:]
        assert len(one["boxes"]) > 0 and (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (one["scores"].diff() <= 0).all() and set(one["labels"].tolist()) <= {1, 2}
        torch.testing.assert_close(twice["boxes"], 2 * one["boxes"])
        assert ("masks" in one) == model.has_masks
        if model.has_masks:
            assert one["masks"].shape == (len(one["boxes"]), height, width) and one["masks"].dtype == torch.bool
            assert twice["masks"].shape[1:] == (2 * height, 2 * width)


def test_masks_are_those_of_torchvision():
    model = make(detector_args={"box_score_thresh": 0.0}).eval()
    with torch.no_grad():
        raw = model.net(IMAGES)  # masks (n, 1, 28, 28)
        found = model(IMAGES)
    for image, one, mine in zip(IMAGES, raw, found, strict=True):
        expected = paste_masks_in_image(one["masks"], one["boxes"], tuple(image.shape[1:]))[:, 0] > 0.5
        assert torch.equal(mine["masks"], expected) and len(expected) > 16  # more than one chunk


@torch.no_grad()
def test_an_image_has_the_same_detections_alone_and_in_a_batch():
    model = make(detector_args={"box_score_thresh": 0.0}).eval()
    together = model(IMAGES)
    for image, one in zip(IMAGES, together, strict=True):
        (alone,) = model([image])
        torch.testing.assert_close(alone["boxes"], one["boxes"], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_several_sizes_in_one_pass_are_those_of_each_alone():
    model = make(detector_args={"box_score_thresh": 0.0}).eval()
    sizes = [(1, 1), (2, 2), (4, 4)]
    several = model.detect_at_sizes(IMAGES, sizes)
    for size, found in zip(sizes, several, strict=True):
        for mine, alone in zip(found, model(IMAGES, compressed_size=size), strict=True):
            for key in ("boxes", "scores", "labels", "masks"):
                assert torch.equal(mine[key], alone[key])
    assert not torch.equal(several[0][0]["scores"], several[1][0]["scores"])


def test_padding_and_strides():
    model = make("mask_rcnn")
    assert model.net.transform(IMAGES)[0].tensors.shape == (3, 3, 64, 64)
    batch, targets = make("mask_rcnn", pad="batch").net.transform(IMAGES[2:], TARGETS[2:])
    assert batch.tensors.shape == (1, 3, 64, 64) and batch.image_sizes == [(33, 20)]  # strides up to 64
    assert torch.equal(batch.tensors[0, :, :33, :20], IMAGES[2]) and not batch.tensors[0, :, 33:].any()
    assert torch.equal(targets[0]["boxes"], TARGETS[2]["boxes"])
    assert model.net.backbone.strides == (4, 8, 16, 32, 64)
    assert make("fcos").net.backbone.strides == (8, 16, 32, 64, 128)
    anchors = model.net.rpn.anchor_generator
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))  # torchvision's own for these strides


def test_layers_of_the_backbone_and_of_the_rest():
    model = make()
    layers = {model.layer_id(name) for name, _ in model.named_parameters()}
    assert layers == {0, 1, 2, 3} and model.num_layers == 4
    assert model.no_weight_decay() == {"net.backbone.features.backbone.embed.pos_embed"}
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"detector": "yolo"}, "detector='yolo' is not known"),
        ({"pad": "left"}, "pad='left' is not known"),
        ({"detector": "fcos", "out_channels": 48}, "multiple of 32"),
        ({"args": {"head": "compressed"}}, "does not update its lookup tokens"),
        ({"args": {"patch_size": (16, 8)}}, "patches of 16x8 pixels give no square anchors"),
        ({"num_classes": 0}, "num_classes=0 is no positive integer"),
        ({"detector_args": {"box_thresh": 0.1}}, "detector_args='box_thresh' is not known: choose one of rpn_"),
        ({"detector_args": {"min_size": 100}}, "detector_args='min_size' is not known"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        make(**options)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_operations_are_counted_at_a_fixed_number_of_regions():
    few = {"rpn_post_nms_top_n_test": 10, "box_detections_per_img": 5}
    model = make(detector_args=few).eval()
    twin = make("faster_rcnn", detector_args=few).eval()
    macs = [count_call_macs(lambda m=m: m.forward_fixed(torch.zeros(2, 3, 64, 64))) for m in (model, twin)]
    # Mask head: a 3x3 and a transposed 2x2 convolution of 64 channels on 14 x 14, then 3 classes on 28 x 28.
    per_mask = 14 * 14 * (9 + 4) * 64 * 64 + 28 * 28 * 64 * 3
    assert macs[0] - macs[1] == 2 * 5 * per_mask
    backbone = count_call_macs(lambda: model.net.backbone(torch.zeros(2, 3, 64, 64)))
    cells = sum((64 // stride) ** 2 for stride in (4, 8, 16, 32, 64))
    rpn = cells * 64 * (2 * 9 * 64 + 3 * 5)
    per_box = 7 * 7 * 9 * 64 * 64 + 7 * 7 * 64 * 32 + 32 * 3 * 5
    assert macs[1] == backbone + 2 * (rpn + 10 * per_box)


def test_native_size_is_rounded_up_to_the_coarsest_stride():
    model = make(img_size=(100, 65))
    assert model.img_size == (128, 128) and model.padded((30, 129)) == (128, 192)
    assert make("fcos", img_size=64).img_size == (128, 128)


@torch.no_grad()
@pytest.mark.parametrize("detector", DETECTORS)
def test_boxes_are_not_rounded_under_autocast(detector):
    threshold = "score_thresh" if detector == "fcos" else "box_score_thresh"
    model = make(detector, detector_args={threshold: 0.0}).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(IMAGES)
    boxes = torch.cat([one["boxes"] for one in found])
    assert boxes.dtype == torch.float32
    inside = boxes[(boxes > 8) & (boxes % 1 != 0)]  # whole ones lie at the edge of an image
    assert len(inside) and (inside != inside.bfloat16().float()).float().mean() > 0.3
