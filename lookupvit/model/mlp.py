"""Norm and MLP of a residual branch, with a backward pass that stores the hidden layer once.

Autograd keeps the normalised input, the hidden layer and its activation. The first and the last follow from the others
by element-wise work, which is cheap; computing them again saves a fifth of what a training step of LookupViT stores.

Letters: D width, F hidden width; `...` any leading axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


class _NormMlp(Function):
    """LayerNorm, Linear, GELU, Linear."""

    @staticmethod
    def forward(
        ctx, x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_w, norm_b, eps)
        hidden = F.linear(normed, w1, b1)
        ctx.save_for_backward(x, mean, rstd, hidden, norm_w, norm_b, w1, w2)
        return F.linear(F.gelu(hidden), w2, b2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, hidden, norm_w, norm_b, w1, w2 = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])  # (..., D) -> (T, D)
        hidden = hidden.reshape(-1, hidden.shape[-1])  # (..., F) -> (T, F)
        grad_w2 = flat.t() @ F.gelu(hidden)
        grad_hidden = torch.ops.aten.gelu_backward(flat @ w2, hidden)
        normed = torch.addcmul(norm_b, (x - mean) * rstd, norm_w).reshape(-1, x.shape[-1])  # (..., D) -> (T, D)
        grad_w1 = grad_hidden.t() @ normed
        grad_normed = (grad_hidden @ w1).view_as(x)
        grad_x, grad_norm_w, grad_norm_b = torch.ops.aten.native_layer_norm_backward(
            grad_normed, x, x.shape[-1:], mean, rstd, norm_w, norm_b, [True, True, True]
        )
        return grad_x, grad_norm_w, grad_norm_b, grad_w1, grad_hidden.sum(0), grad_w2, flat.sum(0), None


class Mlp(nn.Module):
    """LayerNorm, Linear, GELU, Linear, dropout.

    Args:
        dim: D.
        hidden: F.
        drop: dropout after the last layer.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        norm, fc1, fc2 = self.norm, self.fc1, self.fc2
        if torch.is_grad_enabled() and norm.weight.dtype == x.dtype and not _autocast(x):
            out = _NormMlp.apply(x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps)
        else:  # autocast mixes types in ways that autograd knows best
            out = fc2(F.gelu(fc1(norm(x))))
        return self.drop(out)


def _autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
