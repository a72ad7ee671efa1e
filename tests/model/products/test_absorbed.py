"""The hand-written backward passes against numerical differentiation, and what they store."""

import itertools
from copy import deepcopy

import pytest
import torch

from lookupvit import LookupViT
from lookupvit.model.products.absorbed import AbsorbedInfusion, AbsorbedScores, AbsorbedValues
from lookupvit.model.products.paths import choose_paths

B, M, H, N, d = 2, 3, 2, 5, 2
D = H * d
SHAPES = {
    AbsorbedScores: [(B, M * H, d), (H, d, D), (B, N, D)],
    AbsorbedValues: [(B, M * H, N), (B, N, D), (H, D, d)],
    AbsorbedInfusion: [(B, M * H, N), (B, M * H, d), (H, d, D), (D,), (B, N, D)],
}


@pytest.mark.parametrize("function", SHAPES, ids=lambda f: f.__name__)
def test_gradients_equal_numerical_ones(function):
    torch.manual_seed(0)
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES[function]]
    assert torch.autograd.gradcheck(function.apply, args)
    if function is AbsorbedInfusion:
        assert torch.autograd.gradcheck(lambda *a: function.apply(*a, None), args[:-1])


def test_infusion_leaves_the_residual_alone():
    args = [torch.randn(shape) for shape in SHAPES[AbsorbedInfusion]]
    before = args[-1].clone()
    AbsorbedInfusion.apply(*args)
    assert torch.equal(args[-1], before)


@pytest.mark.parametrize("function", [AbsorbedScores, AbsorbedInfusion], ids=lambda f: f.__name__)
def test_the_large_intermediate_is_not_stored(function):
    args = [torch.randn(shape, requires_grad=True) for shape in SHAPES[function]]
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(tuple(t.shape)) or t, lambda t: t):
        function.apply(*args)
    assert stored and (B, M * H, D) not in stored


def test_absorbed_in_bfloat16_is_as_close_to_float64_as_plain():
    torch.manual_seed(0)
    exact = LookupViT(img_size=64, patch_size=8, num_classes=50, embed_dim=96, depth=4, num_heads=3).double().eval()
    images = torch.randn(8, 3, 64, 64, dtype=torch.float64)
    expected = exact(images)
    rough = deepcopy(exact).bfloat16()
    error = {}
    for path in ("plain", "absorbed", "tiled"):
        rough.set_path(path)
        with torch.no_grad():
            error[path] = (rough(images.bfloat16()).double() - expected).square().mean().sqrt()
    assert error["absorbed"] < 1.1 * error["plain"] and error["tiled"] < 1.1 * error["plain"]
    assert error["plain"] < 0.02 * expected.square().mean().sqrt()


def test_auto_takes_the_absorbed_order_where_it_is_a_tenth_cheaper() -> None:
    """The multiply-adds of the two orders, counted from the shapes of their products."""
    seen = set()
    for n, m, heads in itertools.product((16, 49, 196, 1024), (1, 4, 9, 25, 49, 100), (1, 3, 6, 12)):
        dim = 64 * heads
        plain = n * dim * dim + heads * m * n * (dim // heads)  # project the N tokens, then multiply by head
        absorbed = heads * m * (dim // heads) * dim + heads * m * n * dim  # move the projection to the M tokens
        chosen = choose_paths(n, m, dim, heads)
        assert chosen.scores == chosen.values == chosen.infusion == (absorbed < 0.9 * plain)
        seen.add(chosen.scores)
    assert seen == {True, False}


def test_only_a_as_it_stands_is_tiled_by_itself() -> None:
    large = {"n": 6272, "m": 200, "dim": 768, "num_heads": 12, "training": True}
    assert choose_paths(**large).tiled
    for change in ({"reuse": "renormalize"}, {"reuse": "fresh"}, {"training": False}, {"n": 64}):
        assert not choose_paths(**{**large, **change}).tiled
