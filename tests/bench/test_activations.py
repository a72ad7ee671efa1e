"""The activation memory that fake tensors tell of against what autograd keeps of real ones, byte for byte."""

import pytest
import torch

from lookupvit.bench.memory import activation_counter, saved_bytes
from lookupvit.model.lookupvit import LookupViT
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
def test_fake_tensors_tell_what_autograd_keeps(path, compressed_size, options):
    if path == "tiled" and "reuse" in options:
        pytest.skip("needs all of A")
    model = LookupViT(**{**SMALL, "compressed_size": compressed_size, "path": path, **options})
    assert activation_counter(model)(2) == measured(model, 2, (28, 20))


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
@pytest.mark.parametrize("width", [24, 96])  # head widths 8 and 32: plain products and torch's fused attention
def test_another_image_size_and_batch(path, width):
    model = LookupViT(**{**SMALL, "embed_dim": width}, compressed_size=(7, 4), path=path)
    one, three = (activation_counter(model)(batch, (32, 24)) for batch in (1, 3))
    assert (one, three) == (measured(model, 1, (32, 24)), measured(model, 3, (32, 24)))


@pytest.mark.parametrize("depth, num_heads", [(1, 1), (2, 3)])
def test_vit(depth, num_heads):
    model = ViT(img_size=28, patch_size=4, embed_dim=24, depth=depth, num_heads=num_heads, num_classes=10)
    images = torch.randn(2, 3, 28, 28)
    expected = saved_bytes(lambda: model(images).sum(), [*model.parameters(), *model.buffers()])
    assert activation_counter(model)(2) == expected


def test_the_paths_of_one_block_by_hand():
    n, m, dim, heads, batch = 35, 12, 24, 3, 2  # 7x5 lookup tokens, 4x3 compressed ones
    hidden, attention = 4 * dim, heads * m * n
    base = 2 * n + n * dim + 2 * (2 * m + m * dim) + 2 * m * dim  # norms of both sides and the products' inputs
    cross = {
        "plain": base + 2 * n * dim + attention + m * dim + n * dim,
        "absorbed": base + heads * m * dim + attention + m * dim,
        "tiled": base + 2 * n * dim + heads * m + m * dim + n * dim,
    }
    refine = 4 * m + 5 * m * dim + heads * m * m + m * hidden  # norms, attention with its products stored, MLP
    lookup_mlp = n * (2 + dim // 2)
    streams = 3 * 28 * 20 + 4 * m * dim + 3 * n * dim + 2 * m + 2 * n + 2 * dim  # images to pooled features
    resize = 7 * 4 + 5 * 3  # a matrix for each axis, once per step
    for path, values in cross.items():
        model = LookupViT(**{**SMALL, "depth": 1, "compressed_size": (4, 3), "path": path})
        expected = 4 * (batch * (values + refine + lookup_mlp + streams) + resize)
        assert activation_counter(model)(batch) == expected, path


def test_gradient_checkpointing_is_refused():
    for model in (
        LookupViT(**SMALL, compressed_size=3, grad_checkpointing=True),
        ViT(**SMALL, grad_checkpointing=True),
    ):
        with pytest.raises(ValueError, match="set grad_checkpointing=False"):
            activation_counter(model)
