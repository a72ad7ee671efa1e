"""The MLP of a block with a backward pass of its own, which stores less: the same function of the same layers.

Autograd keeps the normalised input, the hidden units and their GELU. This keeps the input and the hidden units, and
computes the others again in the backward pass, at the cost of no matrix product.

Letters: D embed_dim, F hidden width, T tokens of the whole batch.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lookupvit.model.products.unwrapped import unwrapped


def stores_less(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> bool:
    """Whether `norm_mlp` may take the place of calling the layers.

    It may not under autocast, which mixes types in ways that are best left to autograd; nor while compiling, because
    the compiler itself chooses what to store; nor where a call of a layer does more than torch's own layer does, see
    `unwrapped`.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return False
    return unwrapped(norm, fc1, fc2) and norm.weight.dtype == x.dtype


def norm_mlp(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """LayerNorm, Linear, GELU, Linear: `(..., D)` to `(..., D)`."""
    return NormMlp.apply(x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps)[0]


class NormMlp(Function):
    """LayerNorm, Linear, GELU, Linear, of `(..., D)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, norm_w: Tensor, norm_b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the output `(..., D)`, and mean, reciprocal deviation and hidden units for the backward pass."""
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_w, norm_b, eps)
        hidden = F.linear(normed, w1, b1)
        return F.linear(F.gelu(hidden), w2, b2), mean, rstd, hidden

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Keeps the inputs, and all outputs but the first."""
        x, norm_w, norm_b, w1, b1, w2, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:], norm_w, norm_b, w1, b1, w2)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs, in their order."""
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        x, mean, rstd, hidden, norm_w, norm_b, w1, b1, w2 = ctx.saved_tensors
        _, _, _, need_w1, need_b1, need_w2, need_b2, _ = ctx.needs_input_grad  # a frozen layer costs no product
        # The same numbers as in the forward pass, in its type: on CUDA mean and rstd of a half are float32.
        normed = F.layer_norm(x, x.shape[-1:], norm_w, norm_b, ctx.eps)
        if torch.is_grad_enabled():  # for a second derivative `hidden` must not be a stored constant
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


# `apply` reads the signature at every call; storing it saves 20 microseconds per call.
NormMlp.forward.__signature__ = inspect.signature(NormMlp.forward)
