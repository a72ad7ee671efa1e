"""How linear layers begin: the spread of their weights, in every model."""

import math
import re

import pytest
import torch
from torch import nn

from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT
from lookupvit.model.vit import ViT
from lookupvit.tasks.optim import decayed_names
from lookupvit.weights.load import load_weights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3}
MODELS = {
    "lookupvit": (LookupViT, {"compressed_size": 2}),
    "vit": (ViT, {}),
    "lookupvivit": (LookupViViT, {"compressed_size": 2, "num_frames": 4, "model": "factorised"}),
    "vivit": (ViViT, {"num_frames": 4, "model": "factorised"}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weight_init", ["trunc_normal", "xavier_uniform"])
def test_the_spread_of_every_linear_layer(name: str, weight_init: str) -> None:
    torch.manual_seed(0)
    make, options = MODELS[name]
    model = make(**SMALL, **options, num_classes=10, weight_init=weight_init)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(layers) >= 8
    for key, layer in layers.items():
        fan = layer.in_features + layer.out_features
        # uniform in [-a, a] with a = sqrt(6 / fan) has the deviation a / sqrt(3)
        expected = 0.02 if weight_init == "trunc_normal" else math.sqrt(2 / fan)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.1), key
        assert layer.bias is None or not layer.bias.any(), key


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_one_is_named(name: str) -> None:
    make, options = MODELS[name]
    with pytest.raises(ValueError, match=r"weight_init.*'jax'.*trunc_normal") as caught:
        make(**SMALL, **options, weight_init="jax")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_branches_that_begin_at_zero_leave_the_tokens_as_they_are_and_learn(name: str) -> None:
    make, options = MODELS[name]
    torch.manual_seed(0)
    plain = make(**SMALL, **options, num_classes=10, weight_init="xavier_uniform")
    torch.manual_seed(0)
    model = make(**SMALL, **options, num_classes=10, weight_init="xavier_uniform", residual_init="zero")
    for (key, value), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        if re.search(r"blocks\.\d+\..*(proj|proj_infuse|fc2)\.(weight|bias)$", key):
            assert not value.any(), key
        else:
            assert torch.equal(value, other), key
    entered, left = [], []

    def note(_: nn.Module, args: tuple, out: torch.Tensor | tuple) -> None:
        entered.append(args)
        left.append(out)

    blocks = [module for key, module in model.named_modules() if re.search(r"blocks\.\d+$", key)]
    for block in blocks:
        block.register_forward_hook(note)
    clip = torch.randn(2, 3, 32, 32) if "num_frames" not in options else torch.randn(2, 3, 4, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(clip)
    for args, out in zip(entered, left, strict=True):
        for before, after in zip(args, out if isinstance(out, tuple) else (out,), strict=False):
            assert not isinstance(before, torch.Tensor) or torch.equal(before, after)
    learned = set()
    for _ in range(4):  # each step lets the gradient through one layer more
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clip), torch.tensor([0, 3])).backward()
        optimizer.step()
        learned |= {key for key, p in model.named_parameters() if p.grad.any()}
    assert not dict(model.named_parameters()).keys() - learned


@pytest.mark.parametrize("name", MODELS)
def test_layer_scale_multiplies_every_branch_and_does_not_decay(name: str) -> None:
    make, options = MODELS[name]
    model = make(**SMALL, **options, num_classes=10, residual_init=0.25)
    gammas = {key: p for key, p in model.named_parameters() if key.endswith(".gamma")}
    ends = [key for key, p in model.named_parameters() if re.search(r"blocks\..*(proj|proj_infuse|fc2)\.weight$", key)]
    assert len(gammas) == len(ends) and not set(gammas) & decayed_names(model)
    assert all(gamma.shape == (96,) and (gamma == 0.25).all() for gamma in gammas.values())
    clip = torch.randn(2, 3, 32, 32) if "num_frames" not in options else torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        for gamma in gammas.values():
            gamma.copy_(torch.rand(96) + 0.5)
    plain = make(**SMALL, **options, num_classes=10)
    report = load_weights(plain, model.state_dict(), verbose=False)  # folds it: the function is the same
    torch.testing.assert_close(plain(clip), model(clip), rtol=0, atol=1e-5)
    assert "LayerScale: folded into" in report.notes[0]
    again = make(**SMALL, **options, num_classes=10, residual_init=1e-5)
    load_weights(again, model.state_dict(), verbose=False)
    torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)
    report = load_weights(again, plain.state_dict(), verbose=False)  # from one on
    torch.testing.assert_close(again(clip), plain(clip), rtol=0, atol=0)
    assert report.derived == dict.fromkeys(gammas, "one: the weights have no LayerScale")


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_beginning_is_named(name: str) -> None:
    make, options = MODELS[name]
    with pytest.raises(ValueError, match=r"residual_init='none' is not known: choose one of default, zero") as caught:
        make(**SMALL, **options, residual_init="none")
    assert "\n" not in str(caught.value)
