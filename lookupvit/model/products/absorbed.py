"""The absorbed products of the cross-attention, with backward passes that store no more than they must.

Each is a chain of two products whose intermediate result is `(B, M H, D)`. It is larger than the inputs, and computing
it again costs only M D^2 multiply-adds. Autograd would keep it; these functions compute it again in the backward pass.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, d = D / H. "Rows" are the M H rows of the
attention: all heads of the first compressed token, then all heads of the second. In this order no product has to copy
its input.
"""

import inspect

import torch
from torch import Tensor
from torch.autograd import Function


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """`(B, M H, i)` times `(H, i, o)`, head by head: `(B, M H, o)`, as H products of B M rows each."""
    B, rows, i = x.shape
    H, _, o = weight.shape
    x = x.reshape(-1, H, i).transpose(0, 1)  # (B, M H, i) -> (B M, H, i) -> (H, B M, i), a view
    return torch.bmm(x, weight).transpose(0, 1).reshape(B, rows, o)  # (H, B M, o) -> (B M, H, o) -> (B, M H, o)


def _weight_gradient(x: Tensor, grad: Tensor, H: int) -> Tensor:
    """Gradient of `_by_head`'s weight: `(B, M H, i)` and `(B, M H, o)` to `(H, i, o)`."""
    x, grad = (t.reshape(-1, H, t.shape[-1]).transpose(0, 1) for t in (x, grad))  # (B, M H, .) -> (H, B M, .)
    return torch.bmm(x.transpose(1, 2), grad)


class AbsorbedScores(Function):
    """`(Q Wk^T) X^T` for each head: scores from queries and lookup tokens, without keys."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Queries `(B, M H, d)`, key maps `(H, d, D)`, lookup tokens `(B, N, D)` to scores `(B, M H, N)`."""
        return torch.bmm(_by_head(q, weight), x.transpose(1, 2))

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps the inputs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of the queries, the key maps and the lookup tokens."""
        q, weight, x = ctx.saved_tensors
        absorbed = _by_head(q, weight)  # (B, M H, D), computed again
        grad_absorbed = torch.bmm(grad, x)
        return (
            _by_head(grad_absorbed, weight.transpose(1, 2)),
            _weight_gradient(q, grad_absorbed, weight.shape[0]) if ctx.needs_input_grad[1] else None,
            torch.bmm(grad.transpose(1, 2), absorbed),
        )


class AbsorbedValues(Function):
    """`(A X) Wv` for each head: what the attention reads from the lookup tokens, without values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Attention `(B, M H, N)`, lookup tokens `(B, N, D)`, value maps `(H, D, d)`.

        Returns:
            What was read, `(B, M H, d)`, and `A X` `(B, M H, D)`, which the backward pass needs.
        """
        read = torch.bmm(rows, x)  # (B, M H, D)
        return _by_head(read, weight), read

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the inputs and `A X`."""
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of the attention, the lookup tokens and the value maps."""
        if grad is None:
            return None, None, None
        rows, x, weight, read = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative `read` must not be a stored constant
            read = torch.bmm(rows, x)
        grad_read = _by_head(grad, weight.transpose(1, 2))
        return (
            torch.bmm(grad_read, x.transpose(1, 2)),
            torch.bmm(rows.transpose(1, 2), grad_read),
            _weight_gradient(read, grad, weight.shape[0]) if ctx.needs_input_grad[2] else None,
        )


class AbsorbedInfusion(Function):
    """`residual + bias`, plus `A^T (V' Wo)` summed over the heads: from the compressed values to the lookup tokens."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, v: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        """Attention `(B, M H, N)`, values `(B, M H, d)`, output maps `(H, d, D)`, bias `(D,)`, lookup `(B, N, D)`."""
        mixed = _by_head(v, weight)  # (B, M H, D)
        if residual is None:
            return torch.bmm(rows.transpose(1, 2), mixed).add_(bias)
        return (residual + bias).baddbmm_(rows.transpose(1, 2), mixed)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        """Keeps the attention, the values and the output maps."""
        ctx.save_for_backward(*inputs[:3])
        ctx.has_residual = inputs[4] is not None

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """Gradients of the attention, the values, the output maps, the bias and the lookup tokens."""
        rows, v, weight = ctx.saved_tensors
        mixed = _by_head(v, weight)  # (B, M H, D), computed again
        grad_mixed = torch.bmm(rows, grad)
        return (
            torch.bmm(mixed, grad.transpose(1, 2)),
            _by_head(grad_mixed, weight.transpose(1, 2)),
            _weight_gradient(v, grad_mixed, weight.shape[0]) if ctx.needs_input_grad[2] else None,
            grad.sum(dim=(0, 1)),
            grad if ctx.has_residual else None,
        )


for _function in (AbsorbedScores, AbsorbedValues, AbsorbedInfusion):
    # `apply` reads the signature at every call; storing it saves 20 microseconds per call.
    _function.forward.__signature__ = inspect.signature(_function.forward)


def absorbed_scores(q: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """See `AbsorbedScores`."""
    return _run(AbsorbedScores, q, weight, x)


def absorbed_values(rows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """See `AbsorbedValues`; returns what was read, `(B, M H, d)`."""
    return _run(AbsorbedValues, rows, x, weight)[0]


def absorbed_infusion(rows: Tensor, v: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """See `AbsorbedInfusion`."""
    return _run(AbsorbedInfusion, rows, v, weight, bias, residual)


def _run(function: type[Function], *args: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a function with its own backward pass in eager mode with gradients, and its forward pass alone otherwise.

    A compiler decides by itself what to store and what to compute again. Besides, torch 2.11 silently gives wrong
    gradients for a compiled Function whose forward pass works in place on what it returns (pytorch issue 180642).
    """
    own = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return function.apply(*args) if own else function.forward(*args)
