"""The cross-attention without its attention matrix in memory, for high resolutions and videos.

A is (B, H, M, N). At video sizes it takes more memory than everything else that a training step stores. Here one head
is computed at a time, and only the log-sum-exp of each row is kept. Any entry of A follows from it: the way back needs
`out_n = sum_m exp(s_mn - lse_m) v_m`. The scores are computed again for the way back and in both backward passes, so
memory grows with N + M, and each of these passes costs N M D more multiply-adds.

Scores and log-sum-exps are at least float32, whatever the type of the tokens: a log-sum-exp of 20 in bfloat16 is off by
up to 0.06, and with it every entry of A by 6 %. Products with the tokens run in the tokens' type.

Letters: B batch, N lookup tokens, M compressed tokens, H heads, d head width. Queries come already scaled by d**-0.5.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import Function


def _float(x: Tensor) -> Tensor:
    """`x` as float32, or unchanged where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of rows, at least in float32: `(B, M, d)` and `(B, N, d)` to `(B, M, N)`."""
    return torch.bmm(_float(a), _float(b).transpose(1, 2))


def _types_as_given(x: Tensor) -> AbstractContextManager:
    """No autocast on the device of `x`: it would turn the float32 scores into bfloat16 again."""
    device = x.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def tiled_gather(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See `TiledGather`."""
    with _types_as_given(q):
        return TiledGather.apply(q, k, v)


def tiled_infusion(q: Tensor, k: Tensor, lse: Tensor, v: Tensor) -> Tensor:
    """See `TiledInfusion`."""
    with _types_as_given(q):
        return TiledInfusion.apply(q, k, lse, v)


class TiledGather(Function):
    """Softmax over N of `q k^T`, applied to `v`, one head at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `(B, H, M, d)`, keys and values `(B, H, N, d)` to `(B, H, M, d)` and log-sum-exps `(B, H, M, 1)`."""
        out, lse = torch.empty_like(q), torch.empty_like(_float(q[..., :1]))
        for h in range(q.shape[1]):
            scores = _dot(q[:, h], k[:, h])
            lse[:, h] = scores.logsumexp(-1, keepdim=True)
            out[:, h] = torch.bmm(scores.sub_(lse[:, h]).exp_().to(v.dtype), v[:, h])
        return out, lse

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps inputs and outputs."""
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v, out, lse = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for h in range(q.shape[1]):
            attention = _dot(q[:, h], k[:, h]).sub_(lse[:, h]).exp_()
            grads[2][:, h] = torch.bmm(attention.to(v.dtype).transpose(1, 2), grad[:, h])
            # softmax: ds = a (da - sum(da a)), and sum(da a) = sum(dout out); log-sum-exp: ds = a dlse
            shift = grad_lse[:, h] - (_float(grad[:, h]) * out[:, h]).sum(-1, keepdim=True)
            grad_scores = _dot(grad[:, h], v[:, h]).add_(shift).mul_(attention).to(q.dtype)
            grads[0][:, h] = torch.bmm(grad_scores, k[:, h])
            grads[1][:, h] = torch.bmm(grad_scores.transpose(1, 2), q[:, h])
        return grads


class TiledInfusion(Function):
    """The transposed attention, computed again from scores and log-sum-exps, applied to `v` one head at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, lse: Tensor, v: Tensor) -> Tensor:
        """`(B, H, M, d)`, `(B, H, N, d)`, `(B, H, M, 1)`, values `(B, H, M, d)` to `(B, N, H, d)`."""
        out = torch.empty_like(k.transpose(1, 2), memory_format=torch.contiguous_format)
        for h in range(k.shape[1]):
            attention = _dot(q[:, h], k[:, h]).sub_(lse[:, h]).exp_().to(v.dtype)
            out[:, :, h] = torch.bmm(attention.transpose(1, 2), v[:, h])
        return out

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps the inputs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of queries, keys, log-sum-exps and values."""
        q, k, lse, v = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(lse), torch.empty_like(v)
        for h in range(q.shape[1]):
            attention = _dot(q[:, h], k[:, h]).sub_(lse[:, h]).exp_()
            g = grad[:, :, h]  # (B, N, d)
            grads[3][:, h] = torch.bmm(attention.to(g.dtype), g)
            grad_scores = _dot(v[:, h], g).mul_(attention)
            grads[2][:, h] = -grad_scores.sum(-1, keepdim=True)
            grad_scores = grad_scores.to(q.dtype)
            grads[0][:, h] = torch.bmm(grad_scores, k[:, h])
            grads[1][:, h] = torch.bmm(grad_scores.transpose(1, 2), q[:, h])
        return grads
