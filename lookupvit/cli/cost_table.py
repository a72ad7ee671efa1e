"""The table of `lookupvit cost`."""

from itertools import product

import torch
from torch import nn

from lookupvit.analysis.cost import backbone_of, count_macs, count_parameters, lookup_grid, model_macs, vit_macs
from lookupvit.analysis.detector_cost import regions_counted
from lookupvit.bench.memory import activation_counter
from lookupvit.bench.report import Report
from lookupvit.bench.timing import progress_bar
from lookupvit.checks import TRANSPOSED
from lookupvit.grid import check_compressed_size, size_name
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.products.paths import choose_paths
from lookupvit.model.vit import ViT

PATHS = ("plain", "absorbed", "tiled", "auto")
_SIZES = ((3, 3), (5, 5), (7, 7), (10, 10))  # the paper's; those that fit are shown
_TERMS = {"embedding": "embed", "lookup_mlp": "lookup MLP", "blocks": "refine"}  # headings that differ from the names
_MIB = 1 << 20


def cost_report(
    model: nn.Module,
    img_sizes: list[tuple[int, int]],
    sizes: list[tuple[int, ...]] | None = None,
    paths: list[str] | None = None,
    batch: int = 1,
    head: str | None = None,
    name: str | None = None,
    device: str = "cpu",
    trained: list[tuple[int, ...]] | None = None,
) -> Report:
    """Multiply-adds by term for each compressed size and path, beside a plain ViT of the same width and depth.

    Args:
        model: `LookupViT`, `ViT`, or a segmenter or detector, whose heads are counted; it may lie on the meta device.
        img_sizes: (height, width) in pixels, one group of rows each.
        sizes: Compressed sizes; by default the paper's, the model's own and the trained ones, where they fit.
        paths: "plain", "absorbed", "tiled", "auto"; by default all that the model can take.
        batch: Images of a training step, for the memory of its activations.
        head: Head that is read; the model's own by default.
        name: Name of the model in the title.
        device: Where the training step runs; it decides what the self-attention keeps.
        trained: Compressed sizes that the model was trained at.

    Returns:
        The table; counts in 1e9, or in 1e6 for a model below 0.1e9.

    Raises:
        ValueError: For sizes and paths that do not fit.
    """
    backbone = backbone_of(model)
    lookup = isinstance(backbone, LookupViT)
    vit = _vit_like(model) if lookup else model
    if lookup and paths is None:
        paths = [p for p in PATHS if p != "tiled" or backbone.blocks[0].cross.reuse in TRANSPOSED]
    least = min(sum(vit_macs(vit, px).values()) for px in img_sizes)
    unit, scale = ("GMACs", 1e9) if least >= 1e8 else ("MMACs", 1e6)
    checkpointing = backbone.grad_checkpointing if lookup else backbone.vit.grad_checkpointing
    settings = {"batch of the training step": batch, "torch": str(torch.__version__)}
    report = Report(f"Cost of {name or type(model).__name__}, {unit} per image", settings=settings, groups=["px"])
    sizes_at = {px: _fitting(model, px, sizes, trained) if lookup else [] for px in img_sizes}

    counters = {} if checkpointing else {subject: activation_counter(subject, device) for subject in (vit, model)}

    def row(subject: nn.Module, px: tuple[int, int], terms: dict[str, int], measured: int, *step) -> dict:
        total = sum(terms.values())
        columns = dict.fromkeys(("embed", "gather", "refine", "infuse", "lookup MLP", "heads"))
        columns |= {"pyramid": None} if isinstance(model, Detector) else {}
        columns |= {_TERMS.get(term, term): count / scale for term, count in terms.items()}
        columns |= {unit: total / scale, "fewer ops": sum(vit_macs(vit, px).values()) / total}
        columns["measured"] = measured / scale
        columns["agrees"] = "yes" if measured == total else f"{100 * (measured / total - 1):+.2g} %"
        columns["M params"] = count_parameters(subject) / 1e6
        return columns | {"saved MiB": counters[subject](batch, px, *step) / _MIB if counters else None}

    kept = backbone.blocks[0].cross.path if lookup else None
    rows = len(img_sizes) + sum(map(len, sizes_at.values())) * len(paths or ())
    with progress_bar("counting", rows) as advance:
        for px in img_sizes:
            where = {"px": f"{px[0]}x{px[1]}"}
            who = {"model": "ViT", **where, "path": None}
            report.rows.append(who | row(vit, px, vit_macs(vit, px), count_macs(vit, px)))
            advance()
            for size, path in product(sizes_at[px], paths or ()):
                model.set_path(path)
                terms, measured = model_macs(model, px, size, head=head), count_macs(model, px, size, head)
                who = {"model": f"LookupViT {size_name(size)}", **where, "path": _path_label(model, px, size, path)}
                report.rows.append(who | row(model, px, terms, measured, size, path))
                advance()
    if lookup:
        model.set_path(kept)
    report.notes.append("agrees: the closed form (the terms) and torch's FLOP counter (measured) give the same number")
    if lookup:
        report.notes.append("ViT: its blocks stand under refine, which is what they do to N tokens in place of M")
    if isinstance(model, Detector):
        report.notes.append(f"heads: {regions_counted(model)}; regions are cut out and suppressed at no count")
    if checkpointing:
        report.notes.append("saved MiB is not known with gradient checkpointing")
    return report


def _path_label(model: LookupViT, px: tuple[int, int], size: tuple[int, ...], path: str) -> str:
    """The path, and for "auto" which one that is."""
    if path != "auto":
        return path
    grid, cross = lookup_grid(model, px), backbone_of(model).blocks[0].cross
    n, m = grid[0] * grid[1], size[0] * size[1]
    chosen = choose_paths(n, m, cross.dim, cross.num_heads, "auto", cross.cross_norm, cross.reuse)
    absorbed = (chosen.scores, chosen.values, chosen.infusion)
    return f"auto: {'absorbed' if all(absorbed) else 'mixed' if any(absorbed) else 'plain'}"


def _fitting(
    model: LookupViT, px: tuple[int, int], sizes: list[tuple[int, ...]] | None, trained: list[tuple[int, ...]] | None
) -> list[tuple[int, ...]]:
    grid = lookup_grid(model, px)
    if sizes:
        return [check_compressed_size(size, grid) for size in sizes]
    own = (*_SIZES, model.compressed_size, *(trained or ()))
    fits = {s for s in own if all(a <= b for a, b in zip(s, grid, strict=True))}
    return sorted(fits, key=lambda size: (size[0] * size[1], size))


def _vit_like(model: LookupViT | Segmenter | Detector) -> ViT | Segmenter | Detector:
    """The ViT of the same width, depth, heads, patches and classes, without data; of a segmenter one with a ViT."""
    if isinstance(model, Segmenter | Detector):
        block, dim = model.backbone.blocks[0], model.backbone.embed_dim
        args = {"patch_size": model.patch_size, "embed_dim": dim, "depth": model.backbone.depth}
        args |= {"num_heads": block.cross.num_heads, "mlp_ratio": block.mlp.fc1.out_features / dim}
        without = ("compressed_size", "fuse_compressed")  # which a ViT does not have
        same = {key: value for key, value in model.arguments.items() if key not in without}
        if isinstance(model, Segmenter) and model.head.reads_compressed:
            same = {key: value for key, value in same.items() if key not in ("head", "head_args")}
        with torch.device("meta"):
            return type(model)(**{**same, "name": "vit_base_patch16_224", "args": args})
    block = model.blocks[0]
    with torch.device("meta"):
        return ViT(
            model.img_size,
            model.patch_size,
            model.embed.in_chans,
            model.num_classes,
            model.embed_dim,
            model.depth,
            block.cross.num_heads,
            block.mlp.fc1.out_features / model.embed_dim,
        )
