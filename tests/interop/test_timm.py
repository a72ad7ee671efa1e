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
    assert model.num_prefix_tokens == 4
    torch.testing.assert_close(last[0], tokens[:, 4:])
    torch.testing.assert_close(tokens, model.forward_features(X))
    backbone = timm.create_model(NAME, **TINY, features_only=True, out_indices=(1, 2)).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    assert backbone.feature_info.channels() == [12, 12] and backbone.feature_info.reduction() == [8, 8]
    assert [tuple(value.shape) for value in backbone(X)] == [(2, 12, 4, 4)] * 2
    with pytest.raises(ValueError, match="output_fmt='NHWC' is not known: choose one of NCHW, NLC"):
        model.forward_intermediates(X, output_fmt="NHWC")


def test_classifiers_and_pooled_features():
    model = timm.create_model(NAME, **TINY).eval()
    features = model.forward_features(X)
    own = LookupViT.forward_features(model, X)
    torch.testing.assert_close(features, torch.cat([own.compressed, own.lookup], dim=1))
    torch.testing.assert_close(model.forward_head(features), LookupViT.forward_head(model, own))
    pooled = (own.compressed.mean(1) + own.lookup.mean(1)) / 2
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    finer = model.forward_features(X, compressed_size=3)
    assert finer.shape == (2, 9 + 16, 12)
    torch.testing.assert_close(model.forward_head(finer, compressed_size=3), model(X, compressed_size=3))
    assert model.get_classifier() is model.heads
    model.reset_classifier(7)
    assert model(X).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(X), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(X), features)
    model.reset_classifier(3)  # the pool stays
    assert model(X).shape == (2, 4 + 16, 3)
    model.reset_classifier(3, "avg")
    assert model(X).shape == (2, 3)
    unpooled = timm.create_model(NAME, **TINY | {"num_classes": 0}, global_pool="")
    assert unpooled(X).shape == (2, 4 + 16, 12)
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


@pytest.mark.parametrize("head", ["compressed", "lookup"])
def test_one_head_has_its_tokens_alone(head):
    model = timm.create_model(NAME, **TINY, head=head).eval()
    features = model.forward_features(X)
    torch.testing.assert_close(features, getattr(LookupViT.forward_features(model, X), head))
    torch.testing.assert_close(model.forward_head(features), model(X))
    assert model.num_prefix_tokens == (4 if head == "compressed" else 0)
    assert model.default_cfg["classifier"] == (f"heads.{head}.fc",)
    assert model.encode(X).shape == (2, 4, 12) if head == "compressed" else model(X).shape == (2, 5)


@pytest.mark.parametrize("train", [False, True])
def test_torch_fx_traces_it_as_timms_own(train):
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = timm.create_model(NAME, **TINY).train(train)
    options = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    names = get_graph_node_names(model, options)[0]
    traced = create_feature_extractor(model, [names[-1], "blocks.1"], tracer_kwargs=options).train(train)
    found = traced(X)
    assert torch.equal(found[names[-1]], model(X))  # there is no dropout
    found[names[-1]].mean().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())
    with pytest.raises(ValueError, match="has one compressed_size and one head"):
        traced(X, compressed_size=1)
    assert traced(torch.randn(1, 3, 48, 64))["blocks.1"][1].shape == (1, 6 * 8, 12)  # the size is not in the graph


def test_folders_are_models_of_timm(tmp_path, monkeypatch):
    ours = create_model(NAME, **TINY | {"head": "compressed", "lookup_mlp_ratio": 1.0}).eval()
    ours.set_preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), class_names=list("abcde"))
    ours.save_pretrained(tmp_path)
    torch.testing.assert_close(LookupViT.from_pretrained(tmp_path)(X), ours(X))
    sources = [f"local-dir:{tmp_path}"]
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download", lambda repo_id, filename, **options: str(tmp_path / filename)
    )
    sources.append("hf-hub:someone/model")
    for source in sources:
        theirs = timm.create_model(source, pretrained=True).eval()
        torch.testing.assert_close(theirs(X), ours(X))
        config = resolve_model_data_config(theirs)
        assert (tuple(config["mean"]), config["input_size"]) == ((0.4, 0.5, 0.6), (3, 32, 32))
        assert list(theirs.pretrained_cfg["label_names"]) == list("abcde")
        other = timm.create_model(source, pretrained=True, num_classes=7).eval()
        assert other(X).shape == (2, 7)
        torch.testing.assert_close(other.forward_features(X), theirs.forward_features(X))
        backbone = timm.create_model(source, pretrained=True, features_only=True).eval()
        assert [tuple(one.shape) for one in backbone(X)] == [(2, 12, 4, 4)] * 3
    folder = timm.create_model(sources[0], pretrained=True)
    folder.save_pretrained(tmp_path / "again")  # what timm loaded, written by us
    torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()(X), ours(X))
