"""Token Merging (ToMe, arXiv 2210.09461) on timm's ViT, as a peer to measure against.

Each block merges the r most similar pairs of tokens between its attention and its MLP. Written from the paper:
bipartite soft matching on the keys averaged over heads, size-weighted means, and attention that counts a merged token
as often as it stands for (log of its size added to the scores).

Letters: B batch, N tokens, D embed_dim, H heads, d = D / H.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Matching(NamedTuple):
    """Which tokens merge; indices count within their own half.

    Attributes:
        kept: `(B, ceil(N / 2) - r)` tokens at even places that stay.
        source: `(B, r)` tokens at even places that merge.
        target: `(B, r)` the tokens at odd places that they merge into.
    """

    kept: Tensor
    source: Tensor
    target: Tensor


def match_tokens(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching: every token at an even place names its most similar one at an odd place.

    Args:
        metric: `(B, N, C)`, compared by cosine.
        r: Pairs to merge, at most half of the tokens.

    Returns:
        The r most similar pairs, and the rest by falling similarity.
    """
    r = min(r, metric.shape[1] // 2)
    metric = F.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # (B, ceil(N / 2), floor(N / 2))
    best, partner = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    source = order[:, :r]
    return Matching(order[:, r:], source, partner.gather(1, source))


def merge_tokens(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Size-weighted means of the matched tokens.

    Args:
        x: `(B, N, D)`.
        sizes: `(B, N, 1)`, patches that each token stands for.
        matching: Matching of r pairs.

    Returns:
        Tokens `(B, N - r, D)` (kept even places first, then odd ones) and their sizes `(B, N - r, 1)`.
    """

    def add_up(values: Tensor) -> Tensor:
        def rows(index: Tensor) -> Tensor:
            return index.unsqueeze(-1).expand(-1, -1, values.shape[-1])  # (B, K) -> (B, K, D)

        even, odd = values[:, ::2], values[:, 1::2]
        odd = odd.scatter_add(1, rows(matching.target), even.gather(1, rows(matching.source)))
        return torch.cat([even.gather(1, rows(matching.kept)), odd], dim=1)

    total = add_up(sizes)
    return add_up(x * sizes) / total, total


class ToMe(nn.Module):
    """A `VisionTransformer` that merges tokens; it shares the given model's weights.

    Args:
        vit: A pre-norm timm ViT with average pooling and without prefix tokens.
        r: Pairs to merge in each block.

    Raises:
        ValueError: For a model of another kind, or a negative r.
    """

    def __init__(self, vit: VisionTransformer, r: int):
        super().__init__()
        if vit.num_prefix_tokens or vit.global_pool != "avg":
            raise ValueError("ToMe here wants a ViT without class token and with global_pool='avg'")
        if r < 0:
            raise ValueError(f"ToMe merges r >= 0 pairs of tokens per block, got r={r}")
        self.vit, self.r = vit, r

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, Y, X)` to logits `(B, num_classes)`."""
        vit = self.vit
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))  # (B, N, D)
        sizes = None  # all one
        for block in vit.blocks:
            update, metric = self._attend(block.attn, block.norm1(x), sizes)
            x = x + block.drop_path1(block.ls1(update))
            if self.r:
                matching = match_tokens(metric, self.r)
                x, sizes = merge_tokens(x, x.new_ones(*x.shape[:2], 1) if sizes is None else sizes, matching)
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        x = vit.norm(x)
        # a mean over patches, not over what is left of them
        pooled = x.mean(dim=1) if sizes is None else (x * sizes).sum(dim=1) / sizes.sum(dim=1)  # (B, N, D) -> (B, D)
        return vit.head(vit.head_drop(vit.fc_norm(pooled)))

    @staticmethod
    def _attend(attn: nn.Module, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        B, N, D = x.shape
        qkv = attn.qkv(x).view(B, N, 3, attn.num_heads, attn.head_dim)  # (B, N, 3 D) -> (B, N, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, N, d)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = None if sizes is None else sizes.log().transpose(1, 2).unsqueeze(1)  # (B, N, 1) -> (B, 1, 1, N)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = attn.proj(y.transpose(1, 2).reshape(B, N, D))  # (B, H, N, d) -> (B, N, D)
        with torch.no_grad():  # the matching is a choice, not a function to learn
            metric = k.mean(dim=1)  # (B, H, N, d) -> (B, N, d)
        return attn.proj_drop(y), metric
