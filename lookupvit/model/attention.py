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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.checks import check_path
from lookupvit.model.products.absorbed import absorbed_infusion, absorbed_scores, absorbed_values
from lookupvit.model.products.paths import Paths, choose_paths
from lookupvit.model.products.tiled import TiledGather, TiledInfusion
from lookupvit.model.products.unwrapped import unwrapped

# Up to so many tokens times head width, the products themselves are faster on a CPU than torch's fused attention, whose
# blocks are larger than the problem: 1.1 to 2.3 times at 3x3, docs/PERFORMANCE.md.
FEW_TOKENS = 800


class TiledAttention(NamedTuple):
    """What stands for A where it is not stored: queries `(B, H, M, d)`, keys `(B, H, N, d)`, log-sum-exps."""

    q: Tensor
    k: Tensor
    lse: Tensor


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
        if x.device.type == "cpu" and M * q.shape[3] <= FEW_TOKENS:
            x = ((q * q.shape[3] ** -0.5) @ k.transpose(2, 3)).softmax(dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, M, D)))  # (B, H, M, d) -> (B, M, D)


class CrossAttention(nn.Module):
    """Bidirectional cross-attention: `gather` from lookup to compressed tokens, then `infuse` the other way.

    Both directions share one attention matrix, unless `reuse` says otherwise:

    * reuse "transpose": A transposed, as it stands after the softmax over N. Adds no work. The default.
    * reuse "renormalize": a softmax over M of the transposed scores, so that what each lookup token receives is a
      weighted mean.
    * reuse "fresh": a softmax over M of scores of its own: queries of the lookup tokens, keys of the refined compressed
      ones. Adds two projections, one of them of all N tokens: what the paper's reuse of the scores saves.

    The paper leaves open where the cross-attention normalises:

    * cross_norm "input": LayerNorm on what enters the projections, as everywhere else in a pre-norm block. The default.
    * cross_norm "projection": LayerNorm after the Q and K projections (over D, before the heads are split) and after
      the V' projection; none on V.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: biases on Q and V' (see the head of this file for K and V).
        proj_drop: dropout after either output projection.
        reuse: "transpose", "renormalize" or "fresh".
        cross_norm: "input" or "projection".
        infuse: whether the way back exists; without it the block is the unidirectional ablation.
        path: "auto", "plain", "absorbed" or "tiled"; may be changed at any time, never the function.

    Raises:
        ValueError: for path "tiled" with another reuse than "transpose", which needs A as a whole.
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
        path = check_path(path, reuse)
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
            if reuse == "fresh":
                self.norm_ask = nn.LayerNorm(dim, eps=1e-6)  # on the input of its queries, or after their projection
                self.q_infuse = nn.Linear(dim, dim, bias=qkv_bias)
                self.k_infuse = nn.Linear(dim, dim, bias=False)
                self.norm_k_infuse = nn.Identity() if before else nn.LayerNorm(dim, eps=1e-6)
        self.proj_drop = nn.Dropout(proj_drop)

    def choose_paths(self, compressed: Tensor, n: int) -> Paths:
        """The path of each product for compressed tokens `(B, M, D)` and N = `n`, with gradients enabled or not."""
        M, training = compressed.shape[1], torch.is_grad_enabled()
        return choose_paths(n, M, self.dim, self.num_heads, self.path, self.cross_norm, self.reuse, training=training)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, T, D) -> (B, H, T, d)

    def scores(self, compressed: Tensor, lookup: Tensor) -> Tensor:
        """Scores `(B, H, M, N)` before the softmax, by the plain path whatever `path` says: for whoever looks at them.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
        """
        q = self.norm_q(self.q(self.norm_compressed(compressed))) * self.head_dim**-0.5  # (B, M, D)
        k = self.norm_k(self.kv(self.norm_lookup(lookup))[..., : self.dim])  # (B, N, 2 D) -> (B, N, D)
        return self._heads(q) @ self._heads(k).transpose(2, 3)

    def infusion_scores(self, compressed: Tensor, lookup: Tensor) -> Tensor:
        """Scores `(B, H, M, N)` of reuse "fresh", before the softmax over M.

        Args:
            compressed: `(B, M, D)`, after refinement.
            lookup: `(B, N, D)`.
        """
        return self._infusion_scores(self.norm_infuse(compressed) if self.cross_norm == "input" else compressed, lookup)

    def _infusion_scores(self, x: Tensor, lookup: Tensor) -> Tensor:
        """`infusion_scores` of compressed tokens that are normalised where `cross_norm` is "input"."""
        k = self.norm_k_infuse(self.k_infuse(x)) * self.head_dim**-0.5  # (B, M, D)
        before = self.cross_norm == "input"
        q = self.q_infuse(self.norm_ask(lookup)) if before else self.norm_ask(self.q_infuse(lookup))  # (B, N, D)
        return self._heads(k) @ self._heads(q).transpose(2, 3)

    def gather(
        self, compressed: Tensor, lookup: Tensor, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | TiledAttention]:
        """Reads the lookup tokens into the compressed ones.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
            need_attention: the caller wants A itself; it is then never tiled.

        Returns:
            the update of the compressed tokens `(B, M, D)`, and what `infuse` takes: the attention `(B, H, M, N)` (for
            reuse "renormalize" it is already normalised over M), or its stand-in where A is not stored.
        """
        H, d, D = self.num_heads, self.head_dim, self.dim
        B, M, N = compressed.shape[0], compressed.shape[1], lookup.shape[1]
        paths = self.choose_paths(compressed, N)
        if not unwrapped(self.kv):  # the absorbed products would go round what a call of it does
            paths = paths._replace(scores=False, values=False)
        x = self.norm_lookup(lookup)
        q = self.norm_q(self.q(self.norm_compressed(compressed))) * d**-0.5  # (B, M, D)
        if paths.scores or paths.values:
            w_k, w_v = self.kv.weight.chunk(2)  # (D, D) each, rows grouped by head
            k, v = (None if paths.scores else F.linear(x, w_k)), (None if paths.values else F.linear(x, w_v))
        else:
            k, v = self.kv(x).chunk(2, dim=-1)
        if paths.tiled and not need_attention:
            q, k, v = _one_dtype(self._heads(q), self._heads(self.norm_k(k)), self._heads(v))
            read, lse = TiledGather.apply(q, k, v)
            read = read.transpose(1, 2).reshape(B, M, D)  # (B, H, M, d) -> (B, M, D)
            return self.proj_drop(self.proj(read)), TiledAttention(q, k, lse)

        if k is None:
            rows = absorbed_scores(*_one_dtype(q.reshape(B, M * H, d), w_k.view(H, d, D), x))  # (B, M H, N)
            # views (B, M H, N) -> (B, H, M, N); the softmax itself runs on what is contiguous
            scores, attention = (t.view(B, M, H, N).transpose(1, 2) for t in (rows, rows.softmax(dim=-1)))
        else:
            scores = self._heads(q) @ self._heads(self.norm_k(k)).transpose(2, 3)  # (B, H, M, N)
            attention = scores.softmax(dim=-1)

        if v is None:
            w = w_v.view(H, d, D).transpose(1, 2)  # (D, D) -> (H, D, d)
            read = absorbed_values(*_one_dtype(_rows(attention), x, w)).reshape(B, M, D)  # (B, M H, d) -> (B, M, D)
        else:
            read = (attention @ self._heads(v)).transpose(1, 2).reshape(B, M, D)  # (B, H, M, d) -> (B, M, D)
        if self.reuse == "renormalize":
            attention = scores.softmax(dim=-2)
        return self.proj_drop(self.proj(read)), attention

    def infuse(
        self,
        compressed: Tensor,
        attention: Tensor | TiledAttention,
        residual: Tensor | None = None,
        lookup: Tensor | None = None,
    ) -> Tensor:
        """Writes the compressed tokens back to the lookup tokens.

        Args:
            compressed: `(B, M, D)`, after refinement.
            attention: `(B, H, M, N)`, or its stand-in, from `gather`.
            residual: lookup tokens `(B, N, D)` to add, folded into the product where that saves a pass.
            lookup: lookup tokens `(B, N, D)`, which reuse "fresh" asks with; `residual` by default.

        Returns:
            `(B, N, D)`: the update, plus `residual` if given.
        """
        if self.cross_norm == "input":
            compressed = self.norm_infuse(compressed)
            v = self.v_infuse(compressed)
        else:
            v = self.norm_infuse(self.v_infuse(compressed))
        if isinstance(attention, TiledAttention):
            q, k, lse = attention
            update = TiledInfusion.apply(q, k, lse, self._heads(v).to(q.dtype)).flatten(2)  # (B, N, H, d) -> (B, N, D)
            update = self.proj_drop(self.proj_infuse(update))
            return update if residual is None else residual + update
        if self.reuse == "fresh":
            attention = self._infusion_scores(compressed, residual if lookup is None else lookup).softmax(dim=-2)
        B, H, M, N = attention.shape
        if self.choose_paths(compressed, N).infusion and unwrapped(self.proj_infuse):
            w = self.proj_infuse.weight.t().view(H, self.head_dim, self.dim)  # (D, D) -> (H, d, D)
            args = _one_dtype(_rows(attention), v.reshape(B, M * H, self.head_dim), w, self.proj_infuse.bias)
            if residual is not None and residual.dtype == args[0].dtype and not (self.training and self.proj_drop.p):
                return absorbed_infusion(*args, residual)
            update = absorbed_infusion(*args, None)
        else:
            update = attention.transpose(2, 3) @ self._heads(v)  # (B, H, N, d)
            update = self.proj_infuse(update.transpose(1, 2).reshape(B, N, self.dim))  # (B, H, N, d) -> (B, N, D)
        update = self.proj_drop(update)
        return update if residual is None else residual + update


def _rows(attention: Tensor) -> Tensor:
    """`(B, H, M, N)` as `(B, M H, N)`, without a copy after absorbed scores."""
    return attention.transpose(1, 2).flatten(1, 2)  # (B, H, M, N) -> (B, M, H, N) -> (B, M H, N)


def _one_dtype(*tensors: Tensor) -> list[Tensor]:
    """What autocast would do: under it, everything in its type."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) for t in tensors]
