"""Attention of a LookupViT block: among the compressed tokens, and both ways between compressed and lookup tokens.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, d = D / H, A attention (B, H, M, N).

The cross-attention of one head, with Fp the compressed tokens, Fl the lookup tokens and LN a LayerNorm:

    gather   Q = LN(Fp) Wq / sqrt(d)    K, V = LN(Fl) Wk, LN(Fl) Wv    A = softmax(Q K^T) over N    Fp += (A V) Wo
    infuse   V' = LN(Fp) Wv'                                                                        Fl += (A^T V') Wo'

K and V have no bias because it would do nothing. A bias of K adds the same number to every score of a row, which the
softmax over N removes. A bias of V passes through A, whose rows sum to one, and so only shifts the bias of Wo.

This file holds the plain mathematics. The blocks use the subclass `FastCrossAttention` of
`lookupvit/model/products/fast_attention.py`, which is the same function with fewer operations or less memory.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU, plain products are faster than torch's fused attention while (number of tokens) x (head width) is at most
# this, because the fused kernel works in tiles larger than the whole input: 1.1 to 2.3 times faster at 3x3, see
# docs/PERFORMANCE.md.
FEW_TOKENS = 800


def merge_heads(x: Tensor) -> Tensor:
    """`(B, H, T, d)` to `(B, T, D)`."""
    B, H, T, d = x.shape
    return x.transpose(1, 2).reshape(B, T, H * d)  # (B, H, T, d) -> (B, T, H, d) -> (B, T, D)


class SelfAttention(nn.Module):
    """Multi-head self-attention, as in timm's ViT: a fused QKV projection and torch's fused attention.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: Biases on Q, K and V.
        proj_drop: Dropout after the output projection.
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
        return self.proj_drop(self.proj(merge_heads(x)))


class CrossAttention(nn.Module):
    """Bidirectional cross-attention: `gather` reads lookup tokens into compressed tokens, `infuse` writes back.

    `reuse` says which attention the way back takes:

    * "transpose" (the default): the transposed A, as it stands after the softmax over N. It adds no work.
    * "mean": the transposed A times N / M. The rows of A sum to one, so a lookup token receives M / N on average from
      the transposed A, and one from this: the scale of what it receives depends neither on the compressed size nor on
      the image size. It adds no work. A reading of ours, where the paper says no more than "reuse".
    * "renormalize": a softmax over M of the transposed scores of `gather`, so that each lookup token receives a
      weighted mean.
    * "fresh": a softmax over M of new scores, with queries of the lookup tokens and keys of the refined
      compressed tokens. It adds two projections, one of them of all N tokens; the paper's reuse of A saves them.

    `cross_norm` says where the cross-attention normalises, which the paper leaves open:

    * "input" (the default): it normalises the tokens before they are projected, as everywhere else in a
      pre-norm block.
    * "projection": it normalises Q, K and V' after their projections, over D, before the heads are split. V is
      not normalised.

    Args:
        dim: D.
        num_heads: H.
        qkv_bias: Biases on Q and V'; K and V have none, see the head of this file.
        proj_drop: Dropout after each of the two output projections.
        reuse: "transpose", "mean", "renormalize" or "fresh".
        cross_norm: "input" or "projection".
        infuse: Whether the way back exists. Without it the attention is unidirectional, as in the paper's ablation.
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
    ):
        super().__init__()
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.reuse, self.cross_norm = reuse, cross_norm
        norm_input = cross_norm == "input"
        self.norm_compressed = nn.LayerNorm(dim, eps=1e-6) if norm_input else nn.Identity()
        self.norm_lookup = nn.LayerNorm(dim, eps=1e-6) if norm_input else nn.Identity()
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.norm_q = nn.Identity() if norm_input else nn.LayerNorm(dim, eps=1e-6)
        self.norm_k = nn.Identity() if norm_input else nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        if infuse:
            self.norm_infuse = nn.LayerNorm(dim, eps=1e-6)  # before or after V' is projected, as cross_norm says
            self.v_infuse = nn.Linear(dim, dim, bias=qkv_bias)
            self.proj_infuse = nn.Linear(dim, dim)
            if reuse == "fresh":
                self.norm_ask = nn.LayerNorm(dim, eps=1e-6)  # before or after the lookup tokens' queries are projected
                self.q_infuse = nn.Linear(dim, dim, bias=qkv_bias)
                self.k_infuse = nn.Linear(dim, dim, bias=False)
                self.norm_k_infuse = nn.Identity() if norm_input else nn.LayerNorm(dim, eps=1e-6)
        self.proj_drop = nn.Dropout(proj_drop)

    def gather(self, compressed: Tensor, lookup: Tensor, need_attention: bool = False) -> tuple[Tensor, Tensor]:
        """Reads the lookup tokens into the compressed ones.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
            need_attention: Whether the caller itself reads the attention. It makes no difference here, but a
                `FastCrossAttention` then returns the attention even where it would not store it.

        Returns:
            The update of the compressed tokens `(B, M, D)`, and the attention `(B, H, M, N)` for `infuse`. The
            attention is normalised over N, or over M where `reuse` is "renormalize".
        """
        q = self.queries(compressed)  # (B, M, D)
        k, v = self.kv(self.norm_lookup(lookup)).chunk(2, dim=-1)  # (B, N, 2 D) -> 2 x (B, N, D)
        scores = self._heads(q) @ self._heads(self.norm_k(k)).transpose(2, 3)  # (B, H, M, N)
        attention = scores.softmax(dim=-1)
        read = merge_heads(attention @ self._heads(v))  # (B, H, M, d) -> (B, M, D)
        if self.reuse == "renormalize":
            attention = scores.softmax(dim=-2)
        return self.proj_drop(self.proj(read)), attention

    def infuse(
        self, compressed: Tensor, attention: Tensor, residual: Tensor | None = None, lookup: Tensor | None = None
    ) -> Tensor:
        """Writes the compressed tokens back to the lookup tokens.

        Args:
            compressed: `(B, M, D)`, after refinement.
            attention: `(B, H, M, N)`, from `gather`; not read where `reuse` is "fresh".
            residual: Lookup tokens `(B, N, D)` to which the update is added; None returns the update alone.
            lookup: Lookup tokens `(B, N, D)`, from which `reuse="fresh"` makes queries; `residual` by default.

        Returns:
            `(B, N, D)`: the update, plus `residual` if given.
        """
        v, attention = self.infusion_inputs(compressed, attention, residual if lookup is None else lookup)
        update = merge_heads(attention.transpose(2, 3) @ self._heads(v))  # (B, H, N, d) -> (B, N, D)
        update = self.proj_drop(self.proj_infuse(update))
        return update if residual is None else residual + update

    def queries(self, compressed: Tensor) -> Tensor:
        """Q of the compressed tokens, divided by sqrt(d): `(B, M, D)` to `(B, M, D)`."""
        return self.norm_q(self.q(self.norm_compressed(compressed))) * self.head_dim**-0.5

    def infusion_inputs(self, compressed: Tensor, attention: Tensor, lookup: Tensor | None) -> tuple[Tensor, Tensor]:
        """V' of the refined compressed tokens, `(B, M, D)`, and the attention of the way back, `(B, H, M, N)`.

        With `reuse` "mean", V' has the factor N / M of the attention.
        """
        x = self._infusion_norm(compressed)
        v = self.v_infuse(x) if self.cross_norm == "input" else self.norm_infuse(self.v_infuse(x))
        if self.reuse == "fresh":
            return v, self._infusion_scores(x, lookup).softmax(dim=-2)
        if self.reuse == "mean":  # the factor of A is on V', which is smaller
            v = v * (attention.shape[3] / attention.shape[2])
        return v, attention

    def scores(self, compressed: Tensor, lookup: Tensor) -> Tensor:
        """Scores `(B, H, M, N)` of `gather` before the softmax, for statistics and plots.

        Args:
            compressed: `(B, M, D)`.
            lookup: `(B, N, D)`.
        """
        k = self.norm_k(self.kv(self.norm_lookup(lookup))[..., : self.dim])  # (B, N, 2 D) -> (B, N, D)
        return self._heads(self.queries(compressed)) @ self._heads(k).transpose(2, 3)

    def infusion_scores(self, compressed: Tensor, lookup: Tensor) -> Tensor:
        """Scores `(B, H, M, N)` of reuse "fresh", before the softmax over M.

        Args:
            compressed: `(B, M, D)`, after refinement.
            lookup: `(B, N, D)`.
        """
        return self._infusion_scores(self._infusion_norm(compressed), lookup)

    def _infusion_norm(self, compressed: Tensor) -> Tensor:
        return self.norm_infuse(compressed) if self.cross_norm == "input" else compressed

    def _infusion_scores(self, x: Tensor, lookup: Tensor) -> Tensor:
        """`infusion_scores` of compressed tokens that went through `_infusion_norm`."""
        k = self.norm_k_infuse(self.k_infuse(x)) * self.head_dim**-0.5  # (B, M, D)
        norm_input = self.cross_norm == "input"
        q = self.q_infuse(self.norm_ask(lookup)) if norm_input else self.norm_ask(self.q_infuse(lookup))  # (B, N, D)
        return self._heads(k) @ self._heads(q).transpose(2, 3)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, T, H, d) -> (B, H, T, d)
