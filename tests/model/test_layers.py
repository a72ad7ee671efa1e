"""How linear layers begin: the spread of their weights, in every model."""

import math

import pytest
import torch
from torch import nn

from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT
from lookupvit.model.vit import ViT

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
