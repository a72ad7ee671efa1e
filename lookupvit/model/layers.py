"""Pixels to lookup tokens: non-overlapping patches through a convolution, plus learnable positions.

Letters: B batch, C channels, (Y, X) pixels, (h, w) lookup grid, N = h w lookup tokens, D embed_dim.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lookupvit.checks import check_choice
from lookupvit.grid import grid_of, resize_tokens
from lookupvit.model.products.unwrapped import unwrapped

WEIGHT_INITS = ("trunc_normal", "xavier_uniform")


def init_linear_layers(model: nn.Module, weight_init: str = "trunc_normal") -> None:
    """Initialises every linear layer of a model; biases with zeros.

    Args:
        model: changed in place.
        weight_init: "trunc_normal", of deviation 0.02 whatever the width, as timm's ViT; or "xavier_uniform", as the
            ViT in JAX: nearly the same at width 768, five times as large at width 96, where 0.02 learns late.

    Raises:
        ValueError: for another `weight_init`, in one line.
    """
    check_choice("weight_init", weight_init, WEIGHT_INITS)
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        if weight_init == "xavier_uniform":
            nn.init.xavier_uniform_(module.weight)
        else:
            nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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


HEADS = ("both", "compressed", "lookup")


class PooledHead(nn.Module):
    """Global average pool of normalised tokens, dropout, a linear classifier.

    Args:
        dim: D.
        num_classes: C; 0 gives the pooled features themselves.
        drop_rate: dropout before the classifier.
    """

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0):
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, C)`."""
        return self.fc(self.drop(tokens.mean(dim=1)))


class PatchEmbed(nn.Module):
    """Image to tokens with positions.

    The positions live on the grid of `img_size`; another image size resizes them, so any size that the patch divides,
    square or not, is accepted.

    Args:
        img_size: native image size (Y, X).
        patch_size: patch (y, x).
        in_chans: image channels.
        embed_dim: D.
        antialias: antialiased resize of the positions when they shrink.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (224, 224),
        patch_size: tuple[int, int] = (16, 16),
        in_chans: int = 3,
        embed_dim: int = 768,
        antialias: bool = True,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.grid_size = grid_of(img_size, patch_size)
        self.antialias = antialias
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embeds a batch.

        Args:
            x: `(B, C, Y, X)`.

        Returns:
            tokens `(B, N, D)` and their grid (h, w).

        Raises:
            ValueError: for a wrong number of axes or channels, or a size that the patch does not divide.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"expected images of shape (B, {self.in_chans}, height, width), got {tuple(x.shape)}")
        grid = grid_of((x.shape[2], x.shape[3]), self.patch_size)
        # (B, C, Y, X) -> (B, D, h, w) -> (B, N, D); contiguous, for every residual sum after it keeps this layout, and
        # LayerNorm would copy each one of them.
        tokens = self.proj(x).flatten(2).transpose(1, 2).contiguous()
        return tokens + resize_tokens(self.pos_embed, self.grid_size, grid, self.antialias), grid
