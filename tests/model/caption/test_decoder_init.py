"""How a decoder's weights begin."""

import math

import pytest
import torch

from lookupvit.model.caption.decoder import Decoder


def test_xavier_is_as_wide_as_each_layer_asks_and_leaves_the_embedding() -> None:
    torch.manual_seed(0)
    decoder = Decoder(50, embed_dim=96, memory_dim=64, depth=2, num_heads=3, weight_init="xavier_uniform")
    for name, weight in decoder.named_parameters():
        if weight.ndim > 1:
            rows, columns = weight.shape
            std = 0.02 if "embed" in name else math.sqrt(2 / (rows + columns))  # Glorot and Bengio 2010
            assert weight.std().item() == pytest.approx(std, rel=0.1), name
    usual = Decoder(50, embed_dim=96, memory_dim=64, depth=2, num_heads=3)
    assert usual.blocks[0].image.q.weight.std().item() == pytest.approx(0.02, rel=0.1)
    zero = Decoder(50, embed_dim=96, depth=1, num_heads=3, weight_init="xavier_uniform", residual_init="zero")
    assert not zero.blocks[0].image.proj.weight.any() and zero.blocks[0].image.q.weight.std() > 0.05
    with pytest.raises(ValueError, match="weight_init"):
        Decoder(50, embed_dim=96, num_heads=3, weight_init="orthogonal")
