"""The map of features against a forward pass in loops, timm's own, and what padding and checkpointing must not do."""

import pytest
import torch
import torch.nn.functional as F
from naive import lookupvit as naive

from lookupvit import create_model
from lookupvit.grid import size_at_stride
from lookupvit.interop.warm_start import initialise
from lookupvit.model.dense.features import DenseFeatures
from lookupvit.weights.file import Weights

SMALL = {"img_size": (24, 32), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}


def backbone(head="both", **kwargs):
    torch.manual_seed(0)
    model = create_model("lookupvit_tiny_patch4_32", **{**SMALL, "compressed_size": (2, 2), "head": head, **kwargs})
    for parameter in model.parameters():  # norms and biases that do nothing would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("fused", (False, True))
def test_map_equals_loops(fused):
    model = DenseFeatures(backbone(), fuse_compressed=fused)
    images = torch.randn(2, 3, 24, 32)
    state = {**model.backbone.state_dict()}
    state.setdefault("norms.compressed.weight", torch.ones(32))
    head = "both" if fused else "lookup"
    tokens = naive(state, images, (8, 8), 2, 4, (2, 3), head=head, give_tokens=True)
    expected = tokens["lookup"].reshape(2, 3, 4, 32).permute(0, 3, 1, 2)
    if fused:  # torch's own bilinear resize in place of the package's matrices
        small = tokens["compressed"].reshape(2, 2, 3, 32).permute(0, 3, 1, 2)
        expected = expected + F.interpolate(small, size=(3, 4), mode="bilinear", align_corners=False)
    found = model(images, compressed_size=(2, 3))
    assert found.shape == (2, 32, 3, 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_vit_map_is_timms():
    vit = create_model("vit_tiny_patch4_32", **{**SMALL, "num_classes": 5}).eval()
    images = torch.randn(2, 3, 24, 32)
    expected = vit.vit.forward_features(images)
    model = DenseFeatures(vit)
    assert model.backbone.num_classes == 0
    for row, column in ((0, 0), (1, 2), (2, 3)):
        torch.testing.assert_close(model(images)[:, :, row, column], expected[:, 4 * row + column])


@pytest.mark.parametrize("name", ("lookupvit_tiny_patch4_32", "vit_tiny_patch4_32"))
def test_sizes_that_the_patch_does_not_divide(name):
    model = DenseFeatures(create_model(name, **SMALL)).eval()
    images = torch.randn(1, 3, 21, 45)
    padded = torch.zeros(1, 3, 24, 48)
    padded[:, :, :21, :45] = images
    assert model(images).shape == (1, 32, 3, 6)
    assert torch.equal(model(images), model(padded))


def test_several_sizes_equal_separate_calls():
    model, images = DenseFeatures(backbone()), torch.randn(2, 3, 24, 32)
    for size, maps in zip(((1, 2), (3, 4), None), model.forward_sizes(images, [(1, 2), (3, 4), None]), strict=True):
        assert maps.compressed_size == (size or (2, 2))
        assert torch.equal(maps.features, model(images, size))


@pytest.mark.parametrize("name", ("lookupvit_tiny_patch4_32", "vit_tiny_patch4_32"))
@pytest.mark.parametrize("checkpointing", (False, True))
@pytest.mark.parametrize("fused", (False, True))
def test_every_parameter_learns(name, checkpointing, fused):
    if fused and name.startswith("vit"):
        with pytest.raises(ValueError, match="no compressed tokens"):
            DenseFeatures(create_model(name, **SMALL), fuse_compressed=True)
        return
    torch.manual_seed(0)
    model = DenseFeatures(create_model(name, **{**SMALL, "num_classes": 3}), fused, grad_checkpointing=checkpointing)
    (model(torch.randn(2, 3, 24, 32)) * torch.randn(32, 3, 4)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_gathering_alone_learns_where_it_is_fused():
    model = DenseFeatures(backbone(infuse=False), fuse_compressed=True)
    (model(torch.randn(2, 3, 24, 32)) * torch.randn(32, 3, 4)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    with pytest.raises(ValueError, match="set fuse_compressed=True"):
        DenseFeatures(backbone(infuse=False))


def test_refusals():
    with pytest.raises(ValueError, match="the last block of this backbone"):
        DenseFeatures(backbone(head="compressed"))
    with pytest.raises(ValueError, match="build it with head='both'"):
        DenseFeatures(backbone(head="lookup"), keep_compressed=True)
    with pytest.raises(ValueError, match="stride=0"):
        DenseFeatures(backbone(), compressed_stride=0)


def test_compressed_grid_follows_the_aspect():
    assert size_at_stride((512, 512), 64, (32, 32)) == (8, 8)
    assert size_at_stride((512, 1000), 64, (32, 63)) == (8, 16)  # 15.6 tokens
    assert size_at_stride((20, 512), 64, (2, 32)) == (1, 8)
    assert size_at_stride((48, 48), 8, (3, 3)) == (3, 3)  # never larger than the lookup grid
    model = DenseFeatures(backbone(), compressed_stride=16)
    assert [m.compressed_size for m in model.forward_sizes(torch.randn(1, 3, 24, 64), [None])] == [(2, 4)]
    assert torch.equal(model(torch.randn(1, 3, 24, 32) * 0), model(torch.zeros(1, 3, 24, 32), (2, 2)))


def test_a_classifier_starts_it():
    source = backbone(num_classes=4)
    weights = Weights(source.state_dict(), "a classifier", (3, 4), 4)
    for model in (DenseFeatures(backbone(), fuse_compressed=True), DenseFeatures(backbone())):
        report = initialise(model.backbone, weights, verbose=False)
        assert not report.errors and "heads.lookup.fc.weight" in report.unexpected
        assert torch.equal(model.backbone.norms["lookup"].weight, source.norms["lookup"].weight)
    larger = DenseFeatures(backbone(img_size=(48, 40), head="lookup"))
    assert initialise(larger.backbone, weights, verbose=False).resized


def test_layers_for_layer_decay():
    model = DenseFeatures(backbone())
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["backbone.embed.proj.weight"] == 0 and ids["backbone.blocks.1.norm1.weight"] == 2
    assert ids["backbone.norms.lookup.weight"] == 3 == model.num_layers - 1
    assert model.no_weight_decay() == {"backbone.embed.pos_embed"}
