"""Norm and MLP of a residual branch, with a backward pass that stores the hidden layer once.

Autograd keeps the normalised input, the hidden layer and its activation. The first and the last follow from the others
by element-wise work, which is cheap; computing them again saves a fifth of what a training step of LookupViT stores.

Letters: D width, F hidden width; `...` any leading axes.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lookupvit.model.unwrapped import unwrapped


class _NormMlp(Function):
    """LayerNorm, Linear, GELU, Linear: `(..., D)` to `(..., D)`, and what the backward pass needs beside the inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_w, norm_b, eps)
        hidden = F.linear(normed, w1, b1)
        return F.linear(F.gelu(hidden), w2, b2), mean, rstd, hidden

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, norm_w, norm_b, w1, b1, w2, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:], norm_w, norm_b, w1, b1, w2)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        x, mean, rstd, hidden, norm_w, norm_b, w1, b1, w2 = ctx.saved_tensors
        _, _, _, need_w1, need_b1, need_w2, need_b2, _ = ctx.needs_input_grad  # a frozen layer costs no product
        # The same numbers as in the forward pass, in its type: on CUDA mean and rstd of a half are float32.
        normed = F.layer_norm(x, x.shape[-1:], norm_w, norm_b, ctx.eps)
        if torch.is_grad_enabled():  # a second derivative follows: what was stored is a constant to it
            hidden = F.linear(normed, w1, b1)
        flat = grad.reshape(-1, grad.shape[-1])  # (..., D) -> (T, D)
        hidden = hidden.reshape(-1, hidden.shape[-1])  # (..., F) -> (T, F)
        grad_w2 = flat.t() @ F.gelu(hidden) if need_w2 else None
        grad_hidden = torch.ops.aten.gelu_backward(flat @ w2, hidden)
        grad_w1 = grad_hidden.t() @ normed.reshape(-1, normed.shape[-1]) if need_w1 else None  # (..., D) -> (T, D)
        grad_normed = (grad_hidden @ w1).view_as(x)
        grad_x, grad_norm_w, grad_norm_b = torch.ops.aten.native_layer_norm_backward(
            grad_normed, x, x.shape[-1:], mean, rstd, norm_w, norm_b, ctx.needs_input_grad[:3]
        )
        grad_b1, grad_b2 = (grad_hidden.sum(0) if need_b1 else None), (flat.sum(0) if need_b2 else None)
        return grad_x, grad_norm_w, grad_norm_b, grad_w1, grad_b1, grad_w2, grad_b2, None


# `apply` reads the signature at every call; one that is kept saves 20 microseconds each.
_NormMlp.forward.__signature__ = inspect.signature(_NormMlp.forward)


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
        if _own_backward(x) and unwrapped(norm, fc1, fc2) and norm.weight.dtype == x.dtype:
            out = _NormMlp.apply(x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps)[0]
        else:
            out = fc2(F.gelu(fc1(norm(x))))
        return self.drop(out)


def _own_backward(x: Tensor) -> bool:
    """Autocast mixes types in ways that autograd knows best, and a compiler chooses itself what to store."""
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    return torch.is_grad_enabled() and not autocast and not torch.compiler.is_compiling()
