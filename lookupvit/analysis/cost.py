"""What a model costs: multiply-adds, in closed form and as measured, and parameters.

Letters: N lookup tokens, M compressed tokens, D embed_dim, H heads, L depth, C classes. GMAC: 1e9 multiply-adds (two
floating-point operations each). Counted as in the papers: matrix products and convolutions; norms, activations, softmax
and additions are not.
"""

from copy import deepcopy
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from lookupvit.analysis.detector_cost import detector_head_macs
from lookupvit.grid import Size, check_compressed_size, covering_grid, grid_of, to_2tuple
from lookupvit.model.caption.captioner import Captioner
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.heads import LinearHead, MaskTransformerHead
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.model.flops import count_call_macs
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.products.paths import choose_paths
from lookupvit.model.vit import ViT


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    compressed_size: int | tuple[int, ...] | None = None,
    head: str | None = None,
) -> int:
    """Multiply-adds of one image (or clip), measured by torch's FLOP counter on a copy without data.

    Of a captioner: of one image and its longest caption, each token of which is computed once.

    Args:
        model: `LookupViT` or `ViT`; the path that it would take is the one that is counted.
        img_size: Pixels, int or (height, width); the model's own by default.
        compressed_size: Compressed grid; the model's own by default.
        head: "compressed" to count that head alone.
    """
    twin = deepcopy(model).to("meta").eval()
    size = to_2tuple(model.img_size if img_size is None else img_size)
    kwargs = {key: value for key, value in (("compressed_size", compressed_size), ("head", head)) if value is not None}
    frames = (model.num_frames,) if hasattr(model, "num_frames") else ()
    call = getattr(twin, "forward_fixed", twin)  # of a detector, whose regions depend on the picture
    if isinstance(model, Captioner):
        call = partial(_write_longest, twin)
    with torch.no_grad():
        return count_call_macs(lambda: call(torch.empty(1, 3, *frames, *size, device="meta"), **kwargs))


def vit_block_macs(n: int, dim: int, mlp_ratio: float = 4.0) -> int:
    """Multiply-adds of one ViT block on N = `n` tokens of width D = `dim`: `2 N^2 D + (4 + 2 p) N D^2`."""
    return round(2 * n * n * dim + (4 + 2 * mlp_ratio) * n * dim * dim)


def lookupvit_block_macs(
    n: int,
    m: int,
    dim: int,
    num_heads: int,
    path: str = "plain",
    mlp_ratio: float = 4.0,
    lookup_mlp_ratio: float = 0.5,
    cross_norm: str = "input",
    reuse: str = "transpose",
) -> dict[str, int]:
    """Multiply-adds of one LookupViT block, by term.

    As the paper writes it (`path="plain"`) the terms add up to `(3 N M + 2 M^2) D + (4 N + 15 M) D^2`.

    Args:
        n: Lookup tokens N.
        m: Compressed tokens M.
        dim: D.
        num_heads: H.
        path: "plain", "absorbed", "tiled" or "auto".
        mlp_ratio: P.
        lookup_mlp_ratio: 1 / q.
        cross_norm: See `CrossAttention`.
        reuse: See `CrossAttention`.

    Returns:
        Multiply-adds of "gather", "refine", "infuse" and "lookup_mlp".
    """
    paths = choose_paths(n, m, dim, num_heads, path, cross_norm, reuse)
    recomputed = n * m * dim if paths.tiled else 0  # scores that were not stored
    if reuse == "fresh":
        recomputed = (n + m) * dim * dim + n * m * dim

    def product(absorbed: bool) -> int:
        return m * dim * dim + num_heads * m * n * dim if absorbed else n * dim * dim + m * n * dim

    return {
        "gather": 2 * m * dim * dim + product(paths.scores) + product(paths.values),
        "refine": round(2 * m * m * dim + (4 + 2 * mlp_ratio) * m * dim * dim),
        "infuse": m * dim * dim + product(paths.infusion) + recomputed,
        "lookup_mlp": round(2 * lookup_mlp_ratio * n * dim * dim),
    }


def embedding_macs(model: LookupViT, img_size: int | tuple[int, int] | None = None) -> int:
    """Multiply-adds of `LookupViT.embed_images`, which do not depend on the compressed size.

    At another image size than the model's own, the resize of its positions is among them; a batch pays for it once.
    """
    grid = grid_of(to_2tuple(model.img_size if img_size is None else img_size), model.patch_size)
    convolution = prod(grid) * prod(model.patch_size) * model.embed.in_chans * model.embed_dim
    return convolution + _resize_macs(model.embed.grid_size, grid, model.embed_dim)


def _resize_macs(from_size: tuple[int, ...], to_size: tuple[int, ...], dim: int) -> int:
    """Multiply-adds of `resize_tokens`, axis by axis."""
    total, shape = 0, list(from_size)
    for axis, (old, new) in enumerate(zip(from_size, to_size, strict=True)):
        shape[axis] = new
        total += prod(shape) * old * dim if old != new else 0
    return total


def _write_longest(captioner: Captioner, images: torch.Tensor, compressed_size: Any = None) -> torch.Tensor:
    """One pass over as many tokens as the decoder's context has."""
    tokens = torch.zeros(len(images), captioner.context_length, dtype=torch.long, device=images.device)
    return captioner.decoder.logits(captioner.decoder.hidden(tokens, captioner.encode(images, compressed_size)))


def model_macs(
    model: LookupViT | Segmenter | Detector,
    img_size: int | tuple[int, int] | None = None,
    compressed_size: int | tuple[int, ...] | None = None,
    path: str | None = None,
    head: str | None = None,
) -> dict[str, int]:
    """Multiply-adds of a `LookupViT` in closed form, by term, over all blocks.

    Args:
        model: The model, or a segmenter or detector with such a backbone.
        img_size: Pixels; the model's own by default.
        compressed_size: Compressed grid; the model's own by default.
        path: The path to count; the model's own by default.
        head: "compressed" or "lookup" to count that head alone; the model's own by default.

    Returns:
        Multiply-adds of "embedding" (with the resize to compressed tokens), the four block terms, and "heads".
    """
    size = to_2tuple(model.img_size if img_size is None else img_size)
    if isinstance(model, Segmenter | Detector):
        return (_segmenter_macs if isinstance(model, Segmenter) else _detector_macs)(model, size, compressed_size, path)
    grid = grid_of(size, model.patch_size)
    compressed = check_compressed_size(model.compressed_size if compressed_size is None else compressed_size, grid)
    head = model.head if head is None else head
    block = model.blocks[0]
    cross, dim = block.cross, model.embed_dim
    terms = {"embedding": embedding_macs(model, size) + _resize_macs(grid, compressed, dim)}
    per_block = lookupvit_block_macs(
        prod(grid),
        prod(compressed),
        dim,
        cross.num_heads,
        path or cross.path,
        block.mlp.fc1.out_features / dim,
        block.lookup_mlp.fc1.out_features / dim if block.update_lookup else 0.0,
        cross.cross_norm,
        cross.reuse,
    )
    last = model.depth - (head == "compressed")  # from there on nobody reads the lookup tokens
    infusing = sum(b.infuse for b in model.blocks[:last])
    updating = sum(b.update_lookup for b in model.blocks[:last])
    blocks = {"gather": model.depth, "refine": model.depth, "infuse": infusing, "lookup_mlp": updating}
    terms |= {name: count * per_block[name] for name, count in blocks.items()}
    terms["heads"] = (len(model.heads) if head == "both" else 1) * dim * model.num_classes
    return terms


def vit_macs(model: ViT | Segmenter | Detector, img_size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """Multiply-adds of a plain `ViT` in closed form: "embedding", "blocks" and "heads"; see `model_macs`."""
    if isinstance(model, Segmenter | Detector):
        count = _segmenter_macs if isinstance(model, Segmenter) else _detector_macs
        return count(model, to_2tuple(model.img_size if img_size is None else img_size))
    grid = grid_of(to_2tuple(model.img_size if img_size is None else img_size), model.patch_size)
    block, dim, n = model.vit.blocks[0], model.embed_dim, prod(grid)
    return {
        "embedding": n * prod(model.patch_size) * model.vit.patch_embed.proj.in_channels * dim,
        "blocks": model.depth * vit_block_macs(n, dim, block.mlp.fc1.out_features / dim),
        "heads": dim * model.num_classes,
    }


def backbone_of(model: nn.Module) -> nn.Module:
    """The `LookupViT` or `ViT` within a segmenter or a detector; any other model itself."""
    return model.backbone if isinstance(model, Segmenter | Detector) else model


def lookup_grid(model: nn.Module, img_size: Size) -> Size:
    """The lookup grid of an image of (height, width) pixels, which a segmenter or a detector pads.

    Raises:
        ValueError: If another model's patch does not divide it.
    """
    if isinstance(model, Segmenter | Detector):
        return covering_grid(img_size if isinstance(model, Segmenter) else model.padded(img_size), model.patch_size)
    return grid_of(img_size, model.patch_size)


def _segmenter_macs(
    model: Segmenter, img_size: Size, compressed_size: int | Size | None = None, path: str | None = None
) -> dict[str, int]:
    """The terms of the backbone, with those of the head, and of the compressed tokens' way back to the map, as "heads".

    The bilinear resize to pixels is not counted, as no interpolation is.
    """
    grid, dim, classes, head = lookup_grid(model, img_size), model.embed_dim, model.num_classes, model.head
    padded = tuple(cells * step for cells, step in zip(grid, model.patch_size, strict=True))
    n, m, extra = prod(grid), 0, 0
    if isinstance(model.backbone, ViT):
        terms = vit_macs(model.backbone, padded)
    else:
        size = model.features.size_for(img_size) if compressed_size is None else compressed_size
        size = check_compressed_size(size, grid)
        m = prod(size)
        terms = model_macs(model.backbone, padded, size, path)
        extra = _resize_macs(size, grid, dim) if model.features.fuse_compressed else 0
    if isinstance(head, LinearHead):
        own = n * dim * classes
    elif isinstance(head, MaskTransformerHead):
        blocks = len(head.blocks) * vit_block_macs(n + classes, dim)
        own = blocks + (2 * n + classes) * dim * dim + n * classes * dim
    else:  # the compressed tokens as queries
        queries = 2 * m * dim * head.mlp.fc1.out_features + m * dim * classes
        own = queries + n * m * (dim + classes) + n * dim * classes
    return {**terms, "heads": own + extra}


def _detector_macs(
    model: Detector, img_size: Size, compressed_size: int | Size | None = None, path: str | None = None
) -> dict[str, int]:
    """The terms of the backbone at the padded size, with "pyramid" and "heads", see `detector_head_macs`."""
    padded, features = model.padded(img_size), model.features
    if isinstance(model.backbone, ViT):
        return vit_macs(model.backbone, padded) | detector_head_macs(model, img_size)
    size = features.size_for(padded) if compressed_size is None else compressed_size
    terms = model_macs(model.backbone, padded, size, path) | detector_head_macs(model, img_size)
    if features.fuse_compressed:
        grid = grid_of(padded, model.patch_size)
        terms["pyramid"] += _resize_macs(check_compressed_size(size, grid), grid, model.backbone.embed_dim)
    return terms
