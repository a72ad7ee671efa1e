"""Where a model looks: attention of every block, how spread and how different it is, and its roll-out to the patches.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, (h, w) token grid. A factorised video
model attends within one time index: there B counts clips times time indices, and the grids are those of one index.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor, nn

from lookupvit.checks import TRANSPOSED
from lookupvit.grid import Tokens, resize_tokens
from lookupvit.model.block import LookupViTBlock
from lookupvit.model.video.vivit import ViViT
from lookupvit.model.vit import ViT


@dataclass(frozen=True)
class BlockAttention:
    """The attention matrices of one block; the rows of each sum to one.

    Attributes:
        refine: Among the tokens that attend to themselves: `(B, H, M, M)`; of a ViT `(B, H, N, N)`.
        gather: From lookup to compressed tokens, `(B, H, M, N)`; None for a ViT.
        infuse: How much of its update each lookup token takes from each compressed token, `(B, H, N, M)`: the
            transposed attention, scaled to rows that sum to one; None for a ViT, and in a block without a way back.
    """

    refine: Tensor
    gather: Tensor | None = None
    infuse: Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """Attention of a forward pass.

    Attributes:
        blocks: One entry per block.
        grid_size: Grid of the lookup tokens; of a ViT, of all its tokens.
        compressed_size: Grid of the compressed tokens; None for a ViT.
        resize: `(M, N)`, what made the first compressed tokens from the lookup tokens; None for a ViT.
    """

    blocks: list[BlockAttention]
    grid_size: tuple[int, ...]
    compressed_size: tuple[int, ...] | None = None
    resize: Tensor | None = None


@torch.no_grad()
def attention_of(model: nn.Module, x: Tensor, compressed_size: int | tuple[int, ...] | None = None) -> Attention:
    """Runs a model and keeps its attention, computed plainly from what went into each block.

    Args:
        model: A `LookupViT`, `LookupViViT`, `ViT` or `ViViT`, in evaluation mode.
        x: `(B, C, Y, X)`, or clips `(B, C, T, Y, X)`, normalised.
        compressed_size: Compressed grid of this call; the model's own by default.

    Raises:
        ValueError: For a size that does not fit, or a model without blocks that are known here.
    """
    crossing = [block for block in model.modules() if isinstance(block, LookupViTBlock)]
    if crossing:
        inner = [layer for block in crossing for layer in (block.attn, block.mlp)]
        with _inputs(crossing) as into, _inputs(inner) as refined:
            tokens = model.forward_features(x, compressed_size)
        grid, size = _block_grids(model, tokens)
        blocks = [
            _cross_attention(block, *into[block][:2], refined[block.attn][0], refined[block.mlp][0])
            for block in crossing
        ]
        eye = torch.eye(prod(grid), device=x.device)[None]  # (1, N, N): as many features as tokens
        return Attention(blocks, grid, size, resize_tokens(eye, grid, size, model.antialias)[0])
    if not isinstance(model, (ViT, ViViT)):
        raise ValueError(f"the attention of a {type(model).__name__} cannot be shown: take a LookupViT or a ViT")
    layers = [block.attn for block in (model.vit if isinstance(model, ViT) else model).blocks]
    with _inputs(layers) as into:
        tokens = model.forward_features(x)
    blocks = [BlockAttention(_vit_attention(layer, into[layer][0])) for layer in layers]
    return Attention(blocks, _block_grids(model, tokens)[0])


def spread(attention: Tensor) -> tuple[Tensor, Tensor]:
    """How broadly each token looks, and how differently the tokens look.

    Args:
        attention: `(B, H, M, N)`, rows summing to one.

    Returns:
        Two tensors `(H,)`, each in [0, 1], means over the batch. The *entropy* of the rows over `log N`: 0 is one
        place, 1 is everywhere alike. The *diversity* of the M rows: their Jensen-Shannon divergence (entropy of the
        mean row minus mean entropy of the rows) over `log min(M, N)`: 0 where all look at the same places, 1 where no
        two share a place. It is 0 for a single row.
    """
    M, N = attention.shape[2:]
    rows = _entropy(attention.double()).mean(dim=2)  # (B, H)
    mixed = _entropy(attention.double().mean(dim=2))  # (B, H)
    diversity = (mixed - rows) / log(min(M, N)) if min(M, N) > 1 else torch.zeros_like(rows)
    return (rows / log(max(N, 2))).mean(dim=0), diversity.clamp(0, 1).mean(dim=0)


def rollout(attention: Attention, head: str = "compressed") -> Tensor:
    """Attention roll-out: how much of what a head reads came from each patch, through all blocks and both directions.

    After Abnar and Zuidema (arXiv 2005.00928): heads are averaged, and each residual branch counts half, `(I + A) / 2`.
    Compressed tokens begin as their resize of the patches, gather from lookup tokens, mix among each other, and write
    back; MLPs mix nothing. It is a picture of the wiring, not of what the classifier used.

    Args:
        attention: From `attention_of`.
        head: "compressed" or "lookup", the tokens that are averaged in the end; a ViT has "lookup" alone.

    Returns:
        `(B, N)`, rows summing to one.

    Raises:
        ValueError: For a head that the model does not have.
    """
    if head not in (("lookup",) if attention.resize is None else ("compressed", "lookup")):
        raise ValueError(f"roll-out of head {head!r}: this model has none; a ViT has 'lookup', a LookupViT both")
    first = attention.blocks[0].refine
    B, N, eye = first.shape[0], prod(attention.grid_size), torch.eye(prod(attention.grid_size), device=first.device)
    lookup = eye.expand(B, N, N)
    if attention.resize is None:
        for block in attention.blocks:
            lookup = (lookup + block.refine.mean(dim=1) @ lookup) / 2
        return lookup.mean(dim=1)
    compressed = attention.resize.expand(B, -1, N)  # (M, N) -> (B, M, N)
    for block in attention.blocks:
        compressed = (compressed + block.gather.mean(dim=1) @ lookup) / 2
        compressed = (compressed + block.refine.mean(dim=1) @ compressed) / 2
        if block.infuse is not None:
            lookup = (lookup + block.infuse.mean(dim=1) @ compressed) / 2
    return (compressed if head == "compressed" else lookup).mean(dim=1)


def _block_grids(model: nn.Module, tokens: Tokens) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Lookup and compressed grid as the blocks see them: of one time index in a factorised model."""
    first = 1 if getattr(model, "factorised", False) else 0
    size = tokens.compressed_size
    return tokens.grid_size[first:], None if size is None else size[first:]


@contextmanager
def _inputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """The positional arguments with which each module was last called."""
    seen: dict[nn.Module, tuple[Tensor, ...]] = {}
    handles = [module.register_forward_pre_hook(lambda module, args: seen.update({module: args})) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _cross_attention(
    block: LookupViTBlock, compressed: Tensor, lookup: Tensor, refined: Tensor, before_mlp: Tensor
) -> BlockAttention:
    scores = block.cross.scores(compressed, lookup).float()  # (B, H, M, N)
    gather, infuse = scores.softmax(dim=-1), None
    if block.infuse:
        if block.cross.reuse == "fresh":
            scores = block.cross.infusion_scores(before_mlp + block.ls2(block.mlp(before_mlp)), lookup).float()
        infuse = (gather if block.cross.reuse in TRANSPOSED else scores.softmax(dim=-2)).transpose(2, 3)
        infuse = infuse / infuse.sum(dim=-1, keepdim=True)  # (B, H, N, M)
    q, k, _ = block.attn.qkv(refined).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return BlockAttention(((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).float().softmax(dim=-1), gather, infuse)


def _vit_attention(attn: nn.Module, x: Tensor) -> Tensor:
    """`(B, H, N, N)` of timm's attention on its input `(B, N, D)`."""
    q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, d)
    return ((attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(2, 3)).float().softmax(dim=-1)


def _entropy(p: Tensor) -> Tensor:
    """Entropy along the last axis, in nats."""
    return torch.special.entr(p).sum(dim=-1)
