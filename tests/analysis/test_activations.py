"""Closed form of the activation memory against what autograd is seen to keep, byte for byte."""

import pytest
import torch

from lookupvit.analysis.activations import activation_bytes, cross_attention_values, vit_activation_bytes
from lookupvit.bench.memory import saved_bytes
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.products.paths import Paths
from lookupvit.model.vit import ViT

SMALL = {"img_size": (28, 20), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 10}


def measured(model: LookupViT, batch: int, img_size: tuple[int, int]) -> int:
    images = torch.randn(batch, 3, *img_size)

    def loss() -> torch.Tensor:
        lookup, grid = model.embed_images(images)
        return model.forward_head(model.forward_tokens(lookup.contiguous(), grid)).sum()

    # the embedding's own result is kept by nobody else, so that making it contiguous adds nothing
    return saved_bytes(loss, [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled", "auto"])
@pytest.mark.parametrize("compressed_size", [(3, 2), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "compressed"},
        {"head": "lookup", "lookup_mlp_ratio": 1.5},
        {"infuse": False},
        {"cross_norm": "projection"},
        {"cross_norm": "projection", "num_heads": 1, "infuse": False},
        {"reuse": "renormalize"},
        {"reuse": "renormalize", "cross_norm": "projection", "num_heads": 1},
        {"reuse": "fresh"},
        {"reuse": "fresh", "cross_norm": "projection", "num_heads": 1},
        {"num_classes": 0, "qkv_bias": False},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_closed_form_is_what_autograd_keeps(path, compressed_size, options):
    if path == "tiled" and "reuse" in options:
        pytest.skip("needs all of A")
    model = LookupViT(**{**SMALL, "compressed_size": compressed_size, "path": path, **options})
    assert sum(activation_bytes(model, 2).values()) == measured(model, 2, (28, 20))


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
@pytest.mark.parametrize("width", [24, 96])  # head widths 8 and 32: plain products and torch's fused attention
def test_another_image_size_and_batch(path, width):
    model = LookupViT(**{**SMALL, "embed_dim": width}, compressed_size=(7, 4), path=path)
    one, three = (sum(activation_bytes(model, batch, (32, 24)).values()) for batch in (1, 3))
    assert (one, three) == (measured(model, 1, (32, 24)), measured(model, 3, (32, 24)))


@pytest.mark.parametrize("depth, num_heads", [(1, 1), (2, 3)])
def test_vit(depth, num_heads):
    model = ViT(img_size=28, patch_size=4, embed_dim=24, depth=depth, num_heads=num_heads, num_classes=10)
    images = torch.randn(2, 3, 28, 28)
    expected = saved_bytes(lambda: model(images).sum(), [*model.parameters(), *model.buffers()])
    assert sum(vit_activation_bytes(model, 2).values()) == expected


def test_one_cross_attention_by_hand():
    n, m, dim, heads = 100, 10, 16, 4
    a = heads * m * n
    plain, absorbed, tiled = (
        cross_attention_values(n, m, dim, heads, paths)
        for paths in (Paths(False, False, False), Paths(True, True, True), Paths(False, False, False, tiled=True))
    )
    common = 2 * m + 3 * m * dim + 2 * n + n * dim  # both norms, queries and both products' inputs
    assert plain == (common + 2 * n * dim + a, 2 * m + 2 * m * dim + n * dim)
    assert absorbed == (common + heads * m * dim + a, 2 * m + 2 * m * dim)
    assert tiled == (common + 2 * n * dim + heads * m, 2 * m + 2 * m * dim + n * dim)


def test_gradient_checkpointing_is_refused():
    for model, count in (
        (LookupViT(**SMALL, compressed_size=3, grad_checkpointing=True), activation_bytes),
        (ViT(**SMALL, grad_checkpointing=True), vit_activation_bytes),
    ):
        with pytest.raises(ValueError, match="set grad_checkpointing=False"):
            count(model)
