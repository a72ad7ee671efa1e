"""Tiled products in bfloat16 against float64: scores and log-sum-exps are float32, so large scores cost nothing."""

import pytest
import torch
from torch import Tensor

from lookupvit.model.products.tiled import TiledGather, TiledInfusion, tiled_gather, tiled_infusion


def _tokens(scale: float) -> list[Tensor]:
    torch.manual_seed(0)
    B, H, M, N, d = 2, 2, 8, 512, 32
    q, k, v, update = (torch.randn(B, H, t, d).bfloat16() for t in (M, N, N, M))
    return [(q.float() * scale * d**-0.5).bfloat16(), k, v, update]


def _exact(q: Tensor, k: Tensor, v: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    attention = (q @ k.transpose(2, 3)).softmax(-1)
    return attention @ v, (attention.transpose(2, 3) @ update).transpose(1, 2)


def _tiled(q: Tensor, k: Tensor, v: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    read, lse = TiledGather.apply(q, k, v)
    return read, TiledInfusion.apply(q, k, lse, update)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_bfloat16_is_as_good_as_its_inputs(scale):
    """The same bfloat16 inputs to both, so that only the arithmetic in between differs."""
    tokens = _tokens(scale)
    results = []
    for function, dtype in ((_exact, torch.float64), (_tiled, torch.bfloat16)):
        args = [t.to(dtype).requires_grad_() for t in tokens]
        out = function(*args)
        grads = [torch.linspace(-1, 1, o.numel()).bfloat16().view(o.shape).to(dtype) for o in out]
        results.append([*out, *torch.autograd.grad(out, args, grads)])
    errors = [float((t.double() - e).norm() / e.norm()) for e, t in zip(*results, strict=True)]
    assert max(errors) < 0.01, errors
    assert all(t.dtype == torch.bfloat16 for t in results[1])


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_leaves_the_types_as_they_are(compiled):
    q, k, v, update = _tokens(20.0)

    def both(q: Tensor, k: Tensor, v: Tensor, update: Tensor) -> tuple[Tensor, ...]:
        read, lse = tiled_gather(q, k, v)
        return read, lse, tiled_infusion(q, k, lse, update)

    expected = both(q, k, v, update)
    torch._dynamo.reset()
    call = torch.compile(both, backend="eager", fullgraph=True) if compiled else both
    with torch.autocast("cpu", torch.bfloat16):
        got = call(q, k, v, update)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    exact = (q.double() @ k.double().transpose(2, 3)).logsumexp(-1, keepdim=True)
    torch.testing.assert_close(got[1].double(), exact, rtol=1e-5, atol=1e-5)
