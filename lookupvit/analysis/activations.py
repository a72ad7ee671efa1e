"""Activation memory of a training step, in closed form: what the forward pass leaves behind for the backward one.

What is kept follows from the operations: autograd keeps the inputs of a matrix product or a norm and the output of a
softmax; the hand-written functions of `lookupvit.model` keep what they name. Tensors that several operations keep are
counted once, as they are stored once.

Counted are fp32 training steps without autocast, dropout (its masks) and gradient checkpointing, up to the logits: the
loss adds a few values a class. Parameters, their gradients and the optimiser's state are not activations.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, A attention (B, H, M, N).
"""

from math import prod

from lookupvit.grid import check_compressed_size, grid_of, to_2tuple
from lookupvit.model.attention import FEW_TOKENS
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.products.paths import Paths, choose_paths
from lookupvit.model.vit import ViT

BYTES = 4  # of one value in fp32


def cross_attention_values(
    n: int, m: int, dim: int, num_heads: int, paths: Paths, cross_norm: str = "input", reuse: str = "transpose"
) -> tuple[int, int]:
    """Values that one cross-attention keeps of one image, without the residual streams that it reads.

    Args:
        n: N.
        m: M.
        dim: D.
        num_heads: H.
        paths: the path of each product, from `choose_paths(..., training=True)`.
        cross_norm: see `CrossAttention`.
        reuse: see `CrossAttention`.

    Returns:
        values that gathering keeps, and that infusion adds.
    """
    lookup, compressed, attention = n * dim, m * dim, num_heads * m * n
    before = cross_norm == "input"
    moved = num_heads > 1 and m > 1  # else (B, H, M, N) and (B, M, H, N) are two views of one tensor

    gather = 2 * m + compressed  # a norm (mean, deviation) and its output, or its input where it follows a projection
    gather += compressed  # scaled queries
    gather += compressed  # input of the output projection
    if before:
        gather += 2 * n + lookup  # norm and normalised tokens, which keys and values are made of, or read as they are
    elif not paths.scores:
        gather += 2 * n + lookup  # norm of the keys, and its input; what it makes comes next
    if not paths.scores:
        gather += lookup  # keys
    if paths.values:
        gather += num_heads * compressed  # A X, before the value maps
    else:
        gather += lookup  # values
        if not before and not paths.tiled and num_heads > 1:
            gather += lookup  # values by head; the projection's own output stays because of the keys in it
    gather += num_heads * m if paths.tiled else attention  # log-sum-exps, or A
    by_rows = paths.scores or not moved  # A is stored as the absorbed products read it
    if paths.values and not by_rows:
        gather += attention
    if reuse == "renormalize":
        gather += attention
        by_rows = not moved

    if reuse == "fresh":
        by_rows = not moved
    infuse = 2 * m + compressed  # as above
    infuse += compressed  # values by head
    if not paths.infusion:
        infuse += lookup  # input of the output projection
    elif not by_rows:
        infuse += attention
    if reuse == "fresh":
        infuse += 2 * n + lookup  # a norm, and its output or input
        infuse += lookup + compressed  # queries and keys
        infuse += attention
        if not before:
            infuse += 2 * m + compressed  # norm of the keys
    return gather, infuse


def activation_bytes(
    model: LookupViT,
    batch: int = 1,
    img_size: int | tuple[int, int] | None = None,
    compressed_size: int | tuple[int, ...] | None = None,
    path: str | None = None,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes that autograd keeps between the forward and the backward pass of a `LookupViT`, by term.

    Args:
        model: the model.
        batch: images of a step.
        img_size: pixels; the model's own by default.
        compressed_size: compressed grid; the model's own by default.
        path: the path that is taken; the model's own by default.
        device: where the step runs, "cpu" or "cuda..."; the model itself may lie anywhere.

    Returns:
        bytes of "embedding" (the images themselves), "tokens" (both residual streams), "gather", "refine", "infuse",
        "lookup_mlp" and "heads".

    Raises:
        ValueError: for sizes that do not fit, and for a model with gradient checkpointing.
    """
    _check_plain(model.grad_checkpointing)
    size = to_2tuple(model.img_size if img_size is None else img_size)
    grid = grid_of(size, model.patch_size)
    target = check_compressed_size(model.compressed_size if compressed_size is None else compressed_size, grid)
    n, m, dim = prod(grid), prod(target), model.embed_dim
    block = model.blocks[0]
    cross = block.cross
    path = path or cross.path
    paths = choose_paths(n, m, dim, cross.num_heads, path, cross.cross_norm, cross.reuse, training=True)
    gather, infuse = cross_attention_values(n, m, dim, cross.num_heads, paths, cross.cross_norm, cross.reuse)
    infusing = sum(b.infuse for b in model.blocks)
    updating = sum(b.update_lookup for b in model.blocks)
    if cross.reuse == "renormalize":  # without a way back A is not normalised again for long
        gather -= cross.num_heads * m * n
        infuse += cross.num_heads * m * n

    # A branch of the block reads the compressed tokens three times, and the lookup tokens after each update; what the
    # last block leaves is read by the next stage or the final norm.
    compressed_stream = (1 + 3 * model.depth) * m * dim
    lookup_stream = (1 + infusing + updating) * n * dim
    if target == grid:  # the resize hands the lookup tokens on
        compressed_stream -= m * dim
    hidden = block.mlp.fc1.out_features
    refine = 2 * m + m * dim + _self_attention_values(m, dim, cross.num_heads, batch, device) + 2 * m + m * hidden
    values = {
        "embedding": model.embed.in_chans * prod(size),
        "tokens": compressed_stream + lookup_stream,
        "gather": model.depth * gather,
        "refine": model.depth * refine,
        "infuse": infusing * infuse,
        "lookup_mlp": updating * n * (2 + block.lookup_mlp.fc1.out_features) if updating else 0,
        "heads": _head_values("compressed" in model.heads, m, dim, model.num_classes)
        + _head_values("lookup" in model.heads, n, dim, model.num_classes),
    }
    result = {name: BYTES * batch * count for name, count in values.items()}
    resizes = {*zip(model.embed.grid_size, grid, strict=True), *zip(grid, target, strict=True)}  # a matrix each, cached
    result["embedding"] += BYTES * sum(old * new for old, new in resizes if old != new)
    return result


def vit_activation_bytes(model: ViT, batch: int = 1, img_size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """Bytes that autograd keeps of a plain `ViT` (timm's, with torch's fused attention); see `activation_bytes`.

    Returns:
        bytes of "embedding", "tokens" (the residual stream), "blocks" and "heads".
    """
    _check_plain(model.vit.grad_checkpointing)
    size = to_2tuple(model.img_size if img_size is None else img_size)
    n, dim = prod(grid_of(size, model.patch_size)), model.embed_dim
    block = model.vit.blocks[0]
    hidden = block.mlp.fc1.out_features
    attention = 2 * n + n * dim + _fused_attention_values(n, dim, block.attn.num_heads)
    mlp = 2 * n + n * dim + 2 * n * hidden  # the hidden layer before and after its activation
    values = {
        "embedding": model.vit.patch_embed.proj.in_channels * prod(size),
        "tokens": (1 + 2 * model.depth) * n * dim,
        "blocks": model.depth * (attention + mlp),
        "heads": _head_values(True, n, dim, model.num_classes),
    }
    return {name: BYTES * batch * count for name, count in values.items()}


def _fused_attention_values(tokens: int, dim: int, num_heads: int) -> int:
    """Queries, keys, values, result and log-sum-exps of torch's fused attention."""
    return 4 * tokens * dim + tokens * num_heads


def _self_attention_values(m: int, dim: int, num_heads: int, batch: int, device: str) -> int:
    """What `SelfAttention` keeps: on a CPU, few tokens take the plain products, which keep the attention matrix."""
    if not device.startswith("cpu") or m * (dim // num_heads) > FEW_TOKENS:
        return _fused_attention_values(m, dim, num_heads)
    one_tensor = num_heads == 1 or batch == 1  # keys and values are views of the projection, queries stay with them
    return (5 if one_tensor else 4) * m * dim + num_heads * m * m


def _head_values(exists: bool, tokens: int, dim: int, num_classes: int) -> int:
    """The final norm's statistics and the pooled features."""
    return (2 * tokens + (dim if num_classes else 0)) if exists else 0


def _check_plain(grad_checkpointing: bool) -> None:
    if grad_checkpointing:
        raise ValueError("the activation memory is that of a model without checkpointing: set grad_checkpointing=False")
