"""The cross-attention with its products in cheaper orders: the same function of the same parameters.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, d = D / H, A attention (B, H, M, N).

The N lookup tokens outnumber everything else, so what is spent on each of them decides the cost. Matrix products
associate: with X = LN(Fl) and with Wk, Wv and Wo the maps of one head,

    scores    Q (X Wk)^T     = (Q Wk^T) X^T         "absorbed": no product of N D^2 multiply-adds runs,
    values    A (X Wv)       = (A X) Wv             K and V never exist; X is read as it is
    infusion  A^T V' Wo      = A^T (V' Wo)

The left side is the plain path of `CrossAttention`, the right side the absorbed one. An absorbed product costs
(H - 1) M N D + M D^2 more and N D^2 less, so it pays while H M is well below D. The "tiled" path runs the plain
products without storing A. `choose_paths` decides which runs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookupvit.checks import check_path
from lookupvit.model.attention import CrossAttention, merge_heads
from lookupvit.model.products.absorbed import absorbed_infusion, absorbed_scores, absorbed_values
from lookupvit.model.products.paths import Paths, choose_paths
from lookupvit.model.products.tiled import tiled_gather, tiled_infusion
from lookupvit.model.products.unwrapped import unwrapped


class TiledAttention(NamedTuple):
    """Stands for A where A is not stored: queries `(B, H, M, d)`, keys `(B, H, N, d)`, log-sum-exps `(B, H, M, 1)`."""

    q: Tensor
    k: Tensor
    lse: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of A, (B, H, M, N)."""
        return (*self.q.shape[:3], self.k.shape[2])


class FastCrossAttention(CrossAttention):
    """`CrossAttention` that takes the cheapest path of each product at each call.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: See `CrossAttention`, as all up to `infuse`.
        proj_drop: Dropout after each of the two output projections.
        reuse: "transpose", "mean", "renormalize" or "fresh".
        cross_norm: "input" or "projection".
        infuse: Whether the way back exists.
        path: "auto", "plain", "absorbed" or "tiled". It may be changed at any time; the function stays the same.

    Raises:
        ValueError: For path "tiled" with reuse "renormalize" or "fresh", which needs A as a whole.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        reuse: str = "transpose",
        cross_norm: str = "input",
        infuse: bool = True,
        path: str = "auto",
    ):
        super().__init__(dim, num_heads, qkv_bias, proj_drop, reuse, cross_norm, infuse)
        self.path = check_path(path, reuse)

    def choose_paths(self, compressed: Tensor, n: int) -> Paths:
        """The path of each product for compressed tokens `(B, M, D)` and N = `n`, with gradients enabled or not."""
        M, training = compressed.shape[1], torch.is_grad_enabled()
        return choose_paths(n, M, self.dim, self.num_heads, self.path, self.cross_norm, self.reuse, training=training)

    def gather(
        self, compressed: Tensor, lookup: Tensor, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | TiledAttention]:
        """As `CrossAttention.gather`; unless A is needed, a `TiledAttention` may stand for it."""
        paths = self.choose_paths(compressed, lookup.shape[1])
        if paths.tiled and not need_attention:
            return self._tiled_gather(compressed, lookup)
        # An absorbed product reads the weight of `kv` and does not call it, which must be the same.
        if (paths.scores or paths.values) and unwrapped(self.kv):
            return self._absorbed_gather(compressed, lookup, paths)
        return super().gather(compressed, lookup)

    def infuse(
        self,
        compressed: Tensor,
        attention: Tensor | TiledAttention,
        residual: Tensor | None = None,
        lookup: Tensor | None = None,
    ) -> Tensor:
        """As `CrossAttention.infuse`; adding the residual is a part of the absorbed product where that saves a pass."""
        if isinstance(attention, TiledAttention):
            return self._tiled_infuse(compressed, attention, residual)
        if self.choose_paths(compressed, attention.shape[3]).infusion and unwrapped(self.proj_infuse):
            return self._absorbed_infuse(compressed, attention, residual, lookup)
        return super().infuse(compressed, attention, residual, lookup)

    def _tiled_gather(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, TiledAttention]:
        q = self.queries(compressed)  # (B, M, D)
        k, v = self.kv(self.norm_lookup(lookup)).chunk(2, dim=-1)  # (B, N, 2 D) -> 2 x (B, N, D)
        q, k, v = _one_dtype(self._heads(q), self._heads(self.norm_k(k)), self._heads(v))
        read, lse = tiled_gather(q, k, v)
        return self.proj_drop(self.proj(merge_heads(read))), TiledAttention(q, k, lse)

    def _tiled_infuse(self, compressed: Tensor, attention: TiledAttention, residual: Tensor | None) -> Tensor:
        q, k, lse = attention
        v, _ = self.infusion_inputs(compressed, attention, None)  # (B, M, D)
        update = tiled_infusion(q, k, lse, self._heads(v).to(q.dtype)).flatten(2)  # (B, N, H, d) -> (B, N, D)
        update = self.proj_drop(self.proj_infuse(update))
        return update if residual is None else residual + update

    def _absorbed_gather(self, compressed: Tensor, lookup: Tensor, paths: Paths) -> tuple[Tensor, Tensor]:
        H, d, D = self.num_heads, self.head_dim, self.dim
        B, M, N = compressed.shape[0], compressed.shape[1], lookup.shape[1]
        x = self.norm_lookup(lookup)
        q = self.queries(compressed)  # (B, M, D)
        w_k, w_v = self.kv.weight.chunk(2)  # (2 D, D) -> 2 x (D, D), rows grouped by head
        if paths.scores:
            rows = absorbed_scores(*_one_dtype(q.reshape(B, M * H, d), w_k.view(H, d, D), x))  # (B, M H, N)
            # views (B, M H, N) -> (B, H, M, N); the softmax itself runs on what is contiguous
            scores, attention = (t.view(B, M, H, N).transpose(1, 2) for t in (rows, rows.softmax(dim=-1)))
        else:
            k = self.norm_k(F.linear(x, w_k))  # (B, N, D)
            scores = self._heads(q) @ self._heads(k).transpose(2, 3)  # (B, H, M, N)
            attention = scores.softmax(dim=-1)
        if paths.values:
            w = w_v.view(H, d, D).transpose(1, 2)  # (D, D) -> (H, d, D) -> (H, D, d)
            read = absorbed_values(*_one_dtype(_rows(attention), x, w)).reshape(B, M, D)  # (B, M H, d) -> (B, M, D)
        else:
            read = merge_heads(attention @ self._heads(F.linear(x, w_v)))  # (B, H, M, d) -> (B, M, D)
        if self.reuse == "renormalize":
            attention = scores.softmax(dim=-2)
        return self.proj_drop(self.proj(read)), attention

    def _absorbed_infuse(
        self, compressed: Tensor, attention: Tensor, residual: Tensor | None, lookup: Tensor | None
    ) -> Tensor:
        v, attention = self.infusion_inputs(compressed, attention, residual if lookup is None else lookup)
        B, H, M, _ = attention.shape
        w = self.proj_infuse.weight.t().view(H, self.head_dim, self.dim)  # (D, D) -> (H, d, D)
        args = _one_dtype(_rows(attention), v.reshape(B, M * H, self.head_dim), w, self.proj_infuse.bias)
        if residual is not None and residual.dtype == args[0].dtype and not (self.training and self.proj_drop.p):
            return absorbed_infusion(*args, residual)
        update = self.proj_drop(absorbed_infusion(*args, None))  # (B, N, D)
        return update if residual is None else residual + update


def _rows(attention: Tensor) -> Tensor:
    """`(B, H, M, N)` as `(B, M H, N)`, without a copy after absorbed scores."""
    return attention.transpose(1, 2).flatten(1, 2)  # (B, H, M, N) -> (B, M, H, N) -> (B, M H, N)


def _one_dtype(*tensors: Tensor) -> list[Tensor]:
    """Casts all tensors to autocast's type where autocast is on, as it does for torch's own products."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) for t in tensors]
