"""What a video model costs: multiply-adds of one clip (one view), in closed form and as measured.

Letters: T frames, (t, h, w) lookup grid, N lookup and M compressed tokens of a time index (factorised) or of the whole
clip (joint), D embed_dim. Counted as in `lookupvit.analysis.cost`.
"""

from copy import deepcopy
from math import prod

import torch

from lookupvit.analysis.cost import _resize_macs, lookupvit_block_macs, vit_block_macs
from lookupvit.grid import grid_of, to_2tuple
from lookupvit.model.flops import count_call_macs
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT


def count_video_macs(
    model: LookupViViT | ViViT,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    compressed_size: int | tuple[int, ...] | None = None,
    head: str | None = None,
) -> int:
    """Multiply-adds of one clip, measured by torch's FLOP counter on a copy without data.

    Args:
        model: `LookupViViT` or `ViViT`; the path that it would take is the one that is counted.
        num_frames: T; the model's own by default.
        img_size: pixels, int or (height, width); the model's own by default.
        compressed_size: compressed grid; the model's own by default.
        head: "compressed" to count that head alone.

    Returns:
        multiply-adds.
    """
    twin = deepcopy(model).to("meta").eval()
    shape = (num_frames or model.num_frames, *to_2tuple(model.img_size if img_size is None else img_size))
    kwargs = {key: value for key, value in (("compressed_size", compressed_size), ("head", head)) if value is not None}
    with torch.no_grad():
        return count_call_macs(lambda: twin(torch.empty(1, model.embed.in_chans, *shape, device="meta"), **kwargs))


def video_macs(
    model: LookupViViT | ViViT,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    compressed_size: int | tuple[int, ...] | None = None,
    path: str | None = None,
    head: str | None = None,
) -> dict[str, int]:
    """Multiply-adds of one clip in closed form, by term, over all blocks.

    Args:
        model: `LookupViViT` or `ViViT`.
        num_frames: T; the model's own by default.
        img_size: pixels; the model's own by default.
        compressed_size: compressed grid; the model's own by default. Not for a `ViViT`.
        path: the path to count; the model's own by default. Not for a `ViViT`.
        head: "compressed" or "lookup" to count that head of a joint model alone. Not for a `ViViT`.

    Returns:
        multiply-adds of "embedding" (with the resize to compressed tokens), of the four block terms or, for a `ViViT`,
        of "blocks", of "temporal" (0 for a joint model), and of "heads".

    Raises:
        ValueError: for sizes that do not fit, or a compressed size, path or head asked of a `ViViT`.
    """
    frames = num_frames or model.num_frames
    pixels = to_2tuple(model.img_size if img_size is None else img_size)
    grid = grid_of((frames, *pixels), model.embed.patch_size, "clip")
    dim, times = model.embed_dim, grid[0] if model.factorised else 1
    convolution = prod(grid) * prod(model.embed.patch_size) * model.embed.in_chans * dim
    terms = {"embedding": convolution + _resize_macs(model.embed.grid_size, grid, dim)}
    space = grid[1:] if model.factorised else grid  # what one call of a block sees
    if isinstance(model, ViViT):
        if (compressed_size, path, head) != (None, None, None):
            raise ValueError("a plain ViViT has no compressed tokens: leave compressed_size, path and head out")
        ratio = model.blocks[0].mlp.fc1.out_features / dim
        terms["blocks"] = model.depth * times * vit_block_macs(prod(space), dim, ratio)
        return {**terms, "temporal": _temporal_macs(model, grid[0]), "heads": dim * model.num_classes}

    if compressed_size is None:
        compressed_size = model.compressed_size[1:] if model.factorised else model.compressed_size
    size = model.check_size(compressed_size, grid)[-len(space) :]
    head = model.head if head is None else head
    block = model.blocks[0]
    terms["embedding"] += times * _resize_macs(space, size, dim)
    one = lookupvit_block_macs(
        prod(space),
        prod(size),
        dim,
        block.cross.num_heads,
        path or block.cross.path,
        block.mlp.fc1.out_features / dim,
        block.lookup_mlp.fc1.out_features / dim if block.update_lookup else 0.0,
        block.cross.cross_norm,
        block.cross.reuse,
    )
    last = model.depth - (head == "compressed")  # from there on nobody reads the lookup tokens
    counts = {
        "gather": model.depth,
        "refine": model.depth,
        "infuse": sum(b.infuse for b in model.blocks[:last]),
        "lookup_mlp": sum(b.update_lookup for b in model.blocks[:last]),
    }
    terms |= {name: times * count * one[name] for name, count in counts.items()}
    heads = len(model.heads) if head == "both" else 1
    return {**terms, "temporal": _temporal_macs(model, grid[0]), "heads": heads * dim * model.num_classes}


def _temporal_macs(model: LookupViViT | ViViT, times: int) -> int:
    """Multiply-adds of the temporal transformer on so many time indices and its class token."""
    if model.temporal is None:
        return 0
    blocks, dim = model.temporal.blocks, model.embed_dim
    ratio = blocks[0].mlp.fc1.out_features / dim
    resize = _resize_macs((model.temporal.grid_size,), (times,), dim)
    return resize + len(blocks) * vit_block_macs(times + 1, dim, ratio)
