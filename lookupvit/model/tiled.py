"""The cross-attention without its attention matrix in memory, for high resolutions and videos.

A is (B, H, M, N): at video sizes it outweighs everything else that a training step stores. Here one head is computed
at a time, and what is kept is the log-sum-exp of each row, from which any entry of A follows: the way back needs
`out_n = sum_m exp(s_mn - lse_m) v_m`. Scores are computed again for the way back and in both backward passes, so memory
grows with N + M and work by N M D multiply-adds a pass.

Letters: B batch, N lookup tokens, M compressed tokens, H heads, d head width. Queries come already scaled by d**-0.5.
"""

import torch
from torch import Tensor
from torch.autograd import Function


def _scores(q: Tensor, k: Tensor, h: int) -> Tensor:
    """Scores of head `h`: `(B, H, M, d)` and `(B, H, N, d)` to `(B, M, N)`."""
    return torch.bmm(q[:, h], k[:, h].transpose(1, 2))


class TiledGather(Function):
    """Softmax over N of `q k^T`, applied to `v`, one head at a time."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `(B, H, M, d)`, keys and values `(B, H, N, d)` to `(B, H, M, d)` and log-sum-exps `(B, H, M, 1)`."""
        out, lse = torch.empty_like(q), q.new_empty(*q.shape[:3], 1)
        for h in range(q.shape[1]):
            scores = _scores(q, k, h)
            lse[:, h] = scores.logsumexp(-1, keepdim=True)
            out[:, h] = torch.bmm(scores.sub_(lse[:, h]).exp_(), v[:, h])
        ctx.save_for_backward(q, k, v, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v, out, lse = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for h in range(q.shape[1]):
            attention = _scores(q, k, h).sub_(lse[:, h]).exp_()
            grads[2][:, h] = torch.bmm(attention.transpose(1, 2), grad[:, h])
            # softmax: ds = a (da - sum(da a)), and sum(da a) = sum(dout out); log-sum-exp: ds = a dlse
            shift = grad_lse[:, h] - (grad[:, h] * out[:, h]).sum(-1, keepdim=True)
            grad_scores = torch.bmm(grad[:, h], v[:, h].transpose(1, 2)).add_(shift).mul_(attention)
            grads[0][:, h] = torch.bmm(grad_scores, k[:, h])
            grads[1][:, h] = torch.bmm(grad_scores.transpose(1, 2), q[:, h])
        return grads


class TiledInfusion(Function):
    """The transposed attention, made again from scores and log-sum-exps, applied to `v`, one head at a time."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, lse: Tensor, v: Tensor) -> Tensor:
        """`(B, H, M, d)`, `(B, H, N, d)`, `(B, H, M, 1)`, values `(B, H, M, d)` to `(B, N, H, d)`."""
        B, H, N, d = k.shape
        out = q.new_empty(B, N, H, d)
        for h in range(H):
            attention = _scores(q, k, h).sub_(lse[:, h]).exp_()
            out[:, :, h] = torch.bmm(attention.transpose(1, 2), v[:, h])
        ctx.save_for_backward(q, k, lse, v)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of queries, keys, log-sum-exps and values."""
        q, k, lse, v = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(lse), torch.empty_like(v)
        for h in range(q.shape[1]):
            attention = _scores(q, k, h).sub_(lse[:, h]).exp_()
            g = grad[:, :, h]  # (B, N, d)
            grads[3][:, h] = torch.bmm(attention, g)
            grad_scores = torch.bmm(v[:, h], g.transpose(1, 2)).mul_(attention)
            grads[2][:, h] = -grad_scores.sum(-1, keepdim=True)
            grads[0][:, h] = torch.bmm(grad_scores, k[:, h])
            grads[1][:, h] = torch.bmm(grad_scores.transpose(1, 2), q[:, h])
        return grads
