"""The hand-written backward passes against numerical differentiation, and what they store."""

import pytest
import torch

from lookupvit.model.absorbed import AbsorbedInfusion, AbsorbedScores, AbsorbedValues

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
