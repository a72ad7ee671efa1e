"""Attention of a LookupViT block: among compressed tokens, and both ways between compressed and lookup tokens.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, d = D / H, A attention (B, H, M, N).

The N lookup tokens outnumber everything else, so what is spent on each of them decides the cost. Matrix products
associate: with Wk, Wv and Wo the maps of one head,

    scores    Q (X Wk)^T     = (Q Wk^T) X^T         "absorbed": nothing of size N D D is computed,
    values    A (X Wv)       = (A X) Wv             K and V never exist; X is read as it is
    infusion  A^T V' Wo      = A^T (V' Wo)

Left is the plain path, right the absorbed one: the same function of the same parameters. An absorbed product costs
(H - 1) M N D + M D^2 more and N D^2 less, so it pays while H M is well below D; `choose_paths` decides, per product.

Two biases that other ViTs have do not exist here because they would do nothing: a key bias adds the same number to
every score of a row, which the softmax over N removes; a value bias passes through A, whose rows sum to one, and is the
same as a shift of the output projection's bias.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REUSES = ("transpose", "renormalize")
CROSS_NORMS = ("input", "projection")
PATHS = ("auto", "plain", "absorbed")


class Paths(NamedTuple):
    """Which of the three products of the cross-attention run absorbed."""

    scores: bool
    values: bool
    infusion: bool


def choose_paths(n: int, m: int, dim: int, num_heads: int, path: str = "auto", cross_norm: str = "input") -> Paths:
    """Picks the path of each product from its multiply-adds.

    Args:
        n: lookup tokens N.
        m: compressed tokens M.
        dim: D.
        num_heads: H.
        path: "plain", "absorbed", or "auto" for the cheaper one.
        cross_norm: with "projection" a LayerNorm stands between K's projection and the scores; they stay plain.

    Returns:
        the choice for scores, values and infusion.
    """
    if path == "auto":
        plain = n * dim * dim + m * n * dim
        absorbed = m * dim * dim + num_heads * m * n * dim
        # A GEMM of H M rows of width d is a little less efficient than one of width D: ask for a clear margin.
        use = absorbed < 0.9 * plain
    else:
        use = path == "absorbed"
    return Paths(use and cross_norm == "input", use, use)


class SelfAttention(nn.Module):
    """Multi-head self-attention, as in timm's ViT: a fused QKV projection and torch's fused attention.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: biases on Q, K and V.
        proj_drop: dropout after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, proj_drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, M, D)` to `(B, M, D)`."""
        B, M, D = x.shape
        qkv = self.qkv(x).view(B, M, 3, self.num_heads, D // self.num_heads)  # (B, M, 3 D) -> (B, M, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, M, d)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, M, D)))  # (B, H, M, d) -> (B, M, D)


class CrossAttention(nn.Module):
    """Bidirectional cross-attention: `gather` from lookup to compressed tokens, then `infuse` the other way.

    Both directions share one attention matrix. `infuse` computes no new scores:

    * reuse "transpose": A transposed, as it stands after the softmax over N. Adds no work. The default.
    * reuse "renormalize": a softmax over M of the transposed scores, so that what each lookup token receives is a
      weighted mean.

    The paper leaves open where the cross-attention normalises:

    * cross_norm "input": LayerNorm on what enters the projections, as everywhere else in a pre-norm block. The default.
    * cross_norm "projection": LayerNorm after the Q and K projections (over D, before the heads are split) and after
      the V' projection; none on V.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: biases on Q and V' (see the head of this file for K and V).
        proj_drop: dropout after either output projection.
        reuse: "transpose" or "renormalize".
        cross_norm: "input" or "projection".
        infuse: whether the way back exists; without it the block is the unidirectional ablation.
        path: "auto", "plain" or "absorbed"; may be changed at any time, the function stays the same.
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
        super().__init__()
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.reuse, self.cross_norm, self.path = reuse, cross_norm, path
        before = cross_norm == "input"
        self.norm_compressed = nn.LayerNorm(dim, eps=1e-6) if before else nn.Identity()
        self.norm_lookup = nn.LayerNorm(dim, eps=1e-6) if before else nn.Identity()
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.norm_q = nn.Identity() if before else nn.LayerNorm(dim, eps=1e-6)
        self.norm_k = nn.Identity() if before else nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        if infuse:
            self.norm_infuse = nn.LayerNorm(dim, eps=1e-6)  # on the input of V', or after its projection
            self.v_infuse = nn.Linear(dim, dim, bias=qkv_bias)
            self.proj_infuse = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def choose_paths(self, n: int, m: int) -> Paths:
        """The path of each product for N = `n` and M = `m`."""
        return choose_paths(n, m, self.dim, self.num_heads, self.path, self.cross_norm)

    def _heads(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        return x.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)  # (B, T, D) -> (B, H, T, d)

    def _absorb(self, x: Tensor, weight: Tensor) -> Tensor:
        """Per head `(B, H, M, i) @ (H, i, o)` as H products of B M rows; returns (B, H, M, o)."""
        B, H, M, i = x.shape
        x = x.transpose(0, 1).reshape(H, B * M, i)  # (B, H, M, i) -> (H, B M, i)
        return torch.bmm(x, weight).view(H, B, M, -1).transpose(0, 1)  # -> (H, B, M, o) -> (B, H, M, o)

    def gather(self, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the lookup tokens into the compressed ones.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.

        Returns:
            the update of the compressed tokens `(B, M, D)`, and the attention `(B, H, M, N)` that `infuse` takes (for
            reuse "renormalize" it is already normalised over M).
        """
        H, d, D = self.num_heads, self.head_dim, self.dim
        B, M, N = compressed.shape[0], compressed.shape[1], lookup.shape[1]
        paths = self.choose_paths(N, M)
        x = self.norm_lookup(lookup)
        q = self._heads(self.norm_q(self.q(self.norm_compressed(compressed)))) * d**-0.5  # (B, H, M, d)
        w_k, w_v = self.kv.weight.chunk(2)  # (D, D) each, rows grouped by head
        if paths.scores == paths.values:
            k, v = (None, None) if paths.scores else self.kv(x).chunk(2, dim=-1)
        else:
            k, v = (None if paths.scores else F.linear(x, w_k)), (None if paths.values else F.linear(x, w_v))

        if k is None:
            q = self._absorb(q, w_k.view(H, d, D)).reshape(B, H * M, D)  # (B, H, M, D) -> (B, H M, D)
            scores = torch.bmm(q, x.transpose(1, 2)).view(B, H, M, N)  # (B, H M, N) -> (B, H, M, N)
        else:
            scores = q @ self._heads(self.norm_k(k)).transpose(2, 3)  # (B, H, M, N)
        attention = scores.softmax(dim=-1)

        if v is None:
            read = torch.bmm(attention.view(B, H * M, N), x).view(B, H, M, D)  # (B, H M, D) -> (B, H, M, D)
            read = self._absorb(read, w_v.view(H, d, D).transpose(1, 2))  # (B, H, M, d)
        else:
            read = attention @ self._heads(v)  # (B, H, M, d)
        update = self.proj(read.transpose(1, 2).reshape(B, M, D))  # (B, H, M, d) -> (B, M, D)
        return self.proj_drop(update), scores.softmax(dim=-2) if self.reuse == "renormalize" else attention

    def infuse(self, compressed: Tensor, attention: Tensor, residual: Tensor | None = None) -> Tensor:
        """Writes the compressed tokens back to the lookup tokens.

        Args:
            compressed: `(B, M, D)`, after refinement.
            attention: `(B, H, M, N)` from `gather`.
            residual: lookup tokens `(B, N, D)` to add, folded into the product where that saves a pass.

        Returns:
            `(B, N, D)`: the update, plus `residual` if given.
        """
        B, H, M, N = attention.shape
        if self.cross_norm == "input":
            v = self.v_infuse(self.norm_infuse(compressed))
        else:
            v = self.norm_infuse(self.v_infuse(compressed))
        v = self._heads(v)  # (B, H, M, d)
        if self.choose_paths(N, M).infusion:
            w = self.proj_infuse.weight.t().view(H, self.head_dim, self.dim)  # (D, D) -> (H, d, D)
            v = self._absorb(v, w).reshape(B, H * M, self.dim)  # (B, H, M, D) -> (B, H M, D)
            back = attention.view(B, H * M, N).transpose(1, 2)  # (B, N, H M), a view: the GEMM reads it transposed
            if residual is not None and not (self.training and self.proj_drop.p):
                base = residual + self.proj_infuse.bias
                if base.dtype == back.dtype == v.dtype:  # not so under autocast
                    return torch.baddbmm(base, back, v)
            update = torch.bmm(back, v) + self.proj_infuse.bias
        else:
            update = (
                (attention.transpose(2, 3) @ v).transpose(1, 2).reshape(B, N, self.dim)
            )  # (B, H, N, d) -> (B, N, D)
            update = self.proj_infuse(update)
        update = self.proj_drop(update)
        return update if residual is None else residual + update


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value`, or raises a one-line ValueError that lists the `choices` of option `name`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(choices)}")
    return value


def check_heads(dim: int, num_heads: int) -> None:
    """Raises a one-line ValueError unless the heads divide the width."""
    if num_heads < 1 or dim % num_heads:
        lower = math.gcd(dim, max(num_heads, 1))
        raise ValueError(f"num_heads={num_heads} does not divide embed_dim={dim}: choose a divisor, such as {lower}")
