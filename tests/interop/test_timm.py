"""LookupViT as timm knows it: registered by one import, the same function, timm's ways to ask for features."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import lookupvit.interop.timm_registry  # noqa: F401 (another test may have imported lookupvit before timm)
from lookupvit import LookupViT, create_model, list_models, save_weights

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 12, "depth": 3, "num_heads": 3}
TINY |= {"compressed_size": (2, 2)}
NAME = "lookupvit_tiny_patch16_224"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

TIMM_FIRST = """
import sys, timm
import lookupvit
assert timm.is_model("lookupvit_base_patch16_224")
assert "lookupvit.model.lookupvit" not in sys.modules
"""
TIMM_LATER = """
import sys
finders = list(sys.meta_path)
import lookupvit
assert not {"torch", "timm", "lightning"} & set(sys.modules), "importing lookupvit is to stay quick"
assert sys.meta_path == finders, "importing lookupvit changes nothing about other imports"
import timm
import lookupvit.interop.timm_registry
assert timm.is_model("lookupvit_base_patch16_224")
assert "lookupvit.model.lookupvit" not in sys.modules
"""


@pytest.mark.parametrize("code", [TIMM_FIRST, TIMM_LATER], ids=["timm first", "timm later"])
def test_names_are_registered(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_image_model_is_registered():
    assert sorted(timm.list_models("lookupvit_*")) == list_models("lookupvit_*")


def test_it_is_the_same_model(tmp_path):
    ours = create_model(NAME, **TINY).eval()
    save_weights(ours, tmp_path / "x.safetensors")
    theirs = timm.create_model(NAME, **TINY, checkpoint_path=str(tmp_path / "x.safetensors")).eval()
    assert isinstance(theirs, LookupViT)
    torch.testing.assert_close(theirs(X), ours(X))
    torch.testing.assert_close(theirs(X, compressed_size=(1, 1)), ours(X, compressed_size=(1, 1)))
    theirs.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(LookupViT.from_pretrained(tmp_path / "folder")(X), ours(X))
    config = resolve_model_data_config(timm.create_model(NAME, depth=1))
    assert config["input_size"] == (3, 224, 224) and config["mean"] == (0.5, 0.5, 0.5)


def test_features_of_blocks():
    model = timm.create_model(NAME, **TINY).eval()
    _, states = LookupViT.forward_intermediates(model, X)
    maps = model.forward_intermediates(X, indices=[0, 2], intermediates_only=True)
    for index, value in zip((0, 2), maps, strict=True):
        expected = states[index].lookup.transpose(1, 2).reshape(2, 12, 4, 4)
        torch.testing.assert_close(value, expected)
    tokens, last = model.forward_intermediates(X, indices=1, norm=True, output_fmt="NLC")
    torch.testing.assert_close(last[0], tokens.lookup)
    backbone = timm.create_model(NAME, **TINY, features_only=True, out_indices=(1, 2)).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    assert backbone.feature_info.channels() == [12, 12] and backbone.feature_info.reduction() == [8, 8]
    assert [tuple(value.shape) for value in backbone(X)] == [(2, 12, 4, 4)] * 2
    with pytest.raises(ValueError, match="output_fmt='NHWC' is not known: choose one of NCHW, NLC"):
        model.forward_intermediates(X, output_fmt="NHWC")


def test_classifiers_and_pooled_features():
    model = timm.create_model(NAME, **TINY).eval()
    features = model.forward_features(X)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.compressed.mean(1))
    assert model.get_classifier() is model.heads
    model.reset_classifier(7)
    assert model(X).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert model(X).shape == (2, 12)
    with pytest.raises(ValueError, match="LookupViT averages"):
        model.reset_classifier(3, global_pool="token")
    with pytest.raises(ValueError, match=f"no pretrained weights of {NAME} to fetch"):
        timm.create_model(NAME, pretrained=True)


@pytest.mark.parametrize("tokens", ["lookup", "compressed"])
def test_intermediate_layers_as_dinos(tokens):
    model = create_model(NAME, **TINY).eval()
    _, states = model.forward_intermediates(X)
    side = 4 if tokens == "lookup" else 2
    (last,) = model.get_intermediate_layers(X, tokens=tokens, norm=True)
    torch.testing.assert_close(last, getattr(model.forward_features(X), tokens))
    for index, found in zip(
        (0, 1), model.get_intermediate_layers(X, n=[0, 1], tokens=tokens, reshape=True), strict=True
    ):
        expected = getattr(states[index], tokens).transpose(1, 2).reshape(2, 12, side, side)
        torch.testing.assert_close(found, expected)
    assert model.encode(X, compressed_size=(3, 3)).shape == (2, 9, 12)
    with pytest.raises(ValueError, match="names no blocks of 3"):
        model.get_intermediate_layers(X, n=[3])
