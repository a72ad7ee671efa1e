"""The closed form of a detector's cost against torch's counter, which sees each product."""

import pytest

from lookupvit.analysis.cost import backbone_of, count_macs, lookup_grid, model_macs, vit_macs
from lookupvit.model.dense.detector import DETECTORS, Detector

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
HEADS = {"out_channels": 64, "box_convs": 2, "box_dim": 48, "mask_convs": 1}


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("px", [(128, 128), (100, 200)])
def test_closed_form_is_what_is_counted(detector, px):
    lookup = Detector("lookupvit_tiny_patch16_224", 3, 128, detector=detector, args=SMALL, **HEADS)
    for size in ((3, 3), (5, 7)):
        terms = model_macs(lookup, px, size)
        assert sum(terms.values()) == count_macs(lookup, px, size)
        assert model_macs(lookup, px, (3, 3))["heads"] == terms["heads"] > 0
    vit = Detector("vit_tiny_patch16_224", 3, 128, detector=detector, args=SMALL, **HEADS)
    if px == (128, 128):  # at another size timm resizes its positions by an interpolation
        assert sum(vit_macs(vit, px).values()) == count_macs(vit, px)
    assert vit_macs(vit, px)["heads"] == terms["heads"] and vit_macs(vit, px)["pyramid"] == terms["pyramid"]


def test_fused_tokens_and_other_strides_are_counted():
    args = {**SMALL, "patch_size": 8}
    model = Detector("lookupvit_tiny_patch16_224", 3, 128, strides=[4, 8, 32], fuse_compressed=True, args=args, **HEADS)
    assert sum(model_macs(model, (128, 128), (3, 3)).values()) == count_macs(model, (128, 128), (3, 3))
    assert backbone_of(model) is model.backbone and lookup_grid(model, (100, 130)) == (16, 24)


def test_the_number_of_proposals_is_part_of_the_cost():
    def heads(proposals):
        few = {"rpn_post_nms_top_n_test": proposals}
        model = Detector("vit_tiny_patch16_224", 3, 128, detector="faster_rcnn", args=SMALL, detector_args=few, **HEADS)
        return vit_macs(model.eval())["heads"]

    per_box = 2 * 49 * 9 * 64 * 64 + 49 * 64 * 48 + 48 * 4 * 5
    assert heads(1000) - heads(100) == 900 * per_box
