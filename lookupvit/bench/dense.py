"""Suite `dense`: backbones of dense prediction, with a linear head and with a detector's pyramid.

LookupViT stands beside timm's ViT, whose attention is global, and beside a ViT with the windows of ViTDet.

Letters: B images, (h, w) lookup grid, D embed_dim, W tokens along the side of a window.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.bench.cases import BASELINE, DTYPES, Settings, check_model
from lookupvit.bench.memory import peak_bytes, saved_bytes
from lookupvit.bench.report import Report
from lookupvit.bench.suites import MIB, machine_of, new_report, operation_columns, timing_columns
from lookupvit.bench.timing import interleave, timer_for
from lookupvit.grid import check_compressed_size
from lookupvit.model.dense.features import DenseFeatures
from lookupvit.model.dense.pyramid import SimpleFeaturePyramid
from lookupvit.model.flops import count_call_macs
from lookupvit.model.vit import ViT
from lookupvit.model.zoo import create_model

HEADS = ("linear", "pyramid")
MODES = ("forward", "training step")
WINDOW, GLOBAL_BLOCKS, CLASSES = 14, 4, 150


class WindowedViT(nn.Module):
    """A plain ViT in which most blocks attend within windows, as in ViTDet (arXiv 2203.16527).

    The last block of each quarter attends globally. The map is padded with zeros to whole windows for the attention
    alone, as there. ViTDet's relative positions, which cost more, are left out.

    Args:
        vit: Its weights are taken.
        window: W.
        global_blocks: Number of blocks that attend globally, evenly spread.
    """

    def __init__(self, vit: ViT, window: int = WINDOW, global_blocks: int = GLOBAL_BLOCKS) -> None:
        super().__init__()
        self.vit, self.window, depth = vit.vit, window, vit.depth
        self.is_global = {round((k + 1) * depth / global_blocks) - 1 for k in range(min(global_blocks, depth))}
        self.vit.reset_classifier(0)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, Y, X)` to the map `(B, D, h, w)`."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))  # (B, N, D)
        grid = [side // step for side, step in zip(images.shape[2:], self.vit.patch_embed.patch_size, strict=True)]
        for place, block in enumerate(self.vit.blocks):
            normed = block.norm1(x)
            x = x + (block.attn(normed) if place in self.is_global else self._in_windows(block.attn, normed, grid))
            x = x + block.mlp(block.norm2(x))
        return self.vit.norm(x).transpose(1, 2).unflatten(2, grid)  # (B, N, D) -> (B, D, N) -> (B, D, h, w)

    def _in_windows(self, attention: nn.Module, x: Tensor, grid: list[int]) -> Tensor:
        (h, w), side = grid, self.window
        x = F.pad(x.unflatten(1, grid), (0, 0, 0, -w % side, 0, -h % side))  # (B, N, D) -> (B, h', w', D)
        rows, columns = x.shape[1] // side, x.shape[2] // side
        # (B, rows W, columns W, D) -> (B, rows, columns, W, W, D) -> (B rows columns, W W, D)
        x = x.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        shape = x.shape[:-1]
        x = attention(x.flatten(3, 4).flatten(0, 2)).view(*shape, -1)
        # and back: (B, rows, columns, W, W, D) -> (B, rows W, columns W, D) -> (B, N, D)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :h, :w].flatten(1, 2)


@dataclass
class DenseCase:
    """One row: a backbone and a head, which two rows may share.

    Attributes:
        name: For the table.
        features: Images to the map `(B, D, h, w)`.
        head: Of the map.
        kwargs: Of the backbone's call.
    """

    name: str
    features: nn.Module
    head: nn.Module
    kwargs: dict = field(default_factory=dict)

    def outputs(self, images: Tensor) -> Tensor:
        """The sum of squares of all that the head gives, so that a backward pass reaches all of it."""
        found = self.head(self.features(images, **self.kwargs))
        maps = [found] if isinstance(found, Tensor) else list(found.values())
        return torch.stack([x.float().square().mean() for x in maps]).sum()

    def macs(self, img_size: int) -> int:
        """Multiply-adds of one image, counted without data."""
        twin = DenseCase(self.name, *(deepcopy(part).to("meta") for part in (self.features, self.head)), self.kwargs)
        with torch.no_grad():
            return count_call_macs(lambda: twin.outputs(torch.empty(1, 3, img_size, img_size, device="meta")))


def dense_cases(model: str, img_size: int, sizes: tuple[int, ...], head: str, **overrides) -> list[DenseCase]:
    """The competitors at one image size with one head, with random weights, the baseline first.

    Args:
        model: "tiny", "small", "base", "large" or "huge", with patches of 16 pixels.
        img_size: Pixels.
        sizes: Compressed sizes, s for a grid of s x s.
        head: "linear" (a 1x1 convolution to 150 classes) or "pyramid".
        **overrides: Any argument of both `LookupViT` and `ViT`, such as depth.
    """

    def backbone(family: str, **kwargs) -> nn.Module:
        return create_model(f"{family}_{model}_patch16_224", img_size=img_size, num_classes=0, **overrides, **kwargs)

    vit, windowed = DenseFeatures(backbone("vit")), WindowedViT(backbone("vit"))
    lookup = DenseFeatures(backbone("lookupvit", compressed_size=sizes[0], head="lookup"))
    dim = lookup.embed_dim

    def new_head() -> nn.Module:
        return nn.Conv2d(dim, CLASSES, 1) if head == "linear" else SimpleFeaturePyramid(dim, 16)

    shared = new_head()
    named = [(BASELINE, vit), (f"ViT, windows of {WINDOW}", windowed)]
    cases = [DenseCase(name, features, new_head()) for name, features in named]
    grid = (img_size // 16, img_size // 16)
    for size in sizes:
        kwargs = {"compressed_size": check_compressed_size(size, grid)}
        cases.append(DenseCase(f"LookupViT {size}x{size}", lookup, shared, kwargs))
    return cases


def dense(
    settings: Settings,
    model: str = "base",
    img_sizes: tuple[int, ...] = (512, 1024),
    sizes: tuple[int, ...] = (5, 10),
    heads: tuple[str, ...] = HEADS,
    modes: tuple[str, ...] = MODES,
    batch: int = 1,
    rounds: int = 7,
    **overrides,
) -> Report:
    """Times forward passes and training steps, and takes their peak memory.

    Args:
        settings: Device, dtype, compile mode.
        model: Size by name.
        img_sizes: Pixels, multiples of 16.
        sizes: Compressed sizes.
        heads: See `dense_cases`.
        modes: "forward" and "training step"; the latter is forward and backward pass, without an optimiser's step.
        batch: Images per call.
        rounds: At least 7 for figures that are to be quoted.
        **overrides: Of the models.

    Returns:
        The table, a group for each image size, head and mode.
    """
    check_model(model)
    settings.apply()
    machine = machine_of(settings)
    title = f"Backbones of dense prediction, {model}/16, batch {batch}"
    report = new_report(title, settings, machine, ["px", "head", "mode"])
    for img_size in img_sizes:
        for head in heads:
            cases = dense_cases(model, img_size, sizes, head, **overrides)
            counted = {case.name: case.macs(img_size) for case in cases}
            for mode in modes:
                report.rows += _rows(cases, counted, img_size, head, mode, settings, batch, rounds)
    report.notes += [
        "fewer ops: of the forward pass; peak: of one call, above the weights, over the baseline's",
        f"windows: {WINDOW} x {WINDOW} tokens, {GLOBAL_BLOCKS} blocks global, without ViTDet's relative positions",
    ]
    return report


def _rows(
    cases: list[DenseCase],
    macs: dict[str, int],
    img_size: int,
    head: str,
    mode: str,
    settings: Settings,
    batch: int,
    rounds: int,
) -> list[dict]:
    training = mode == "training step"
    dtype = torch.float32 if training else DTYPES[settings.dtype]
    images = torch.randn(batch, 3, img_size, img_size, device=settings.device, dtype=dtype)
    calls, losses = {}, {}
    for case in cases:
        for part in (case.features, case.head):
            part.to(settings.device, dtype).train(training)
        losses[case.name] = _loss(case, images, settings, training)
        calls[case.name] = _step(losses[case.name], case) if training else _no_grad(losses[case.name])
    counts = dict.fromkeys(calls, batch)
    timings = interleave(calls, BASELINE, rounds, 2, timer_for(settings.device), 0.0, counts, f"{img_size} px, {head}")
    rows, first = [], None
    for case in cases:
        peak = peak_bytes(calls[case.name], settings.device) / MIB
        saved = None
        if training:
            known = [tensor for part in (case.features, case.head) for tensor in (*part.parameters(), *part.buffers())]
            saved = saved_bytes(losses[case.name], known) / MIB
        first = peak if first is None else first
        row = {"model": case.name, "px": img_size, "head": head, "mode": mode, "GMACs": macs[case.name] / 1e9}
        row |= timing_columns(timings[case.name])
        row |= operation_columns(timings[case.name], macs[case.name], macs[BASELINE])
        rows.append(row | {"peak MiB": peak, "peak": peak / first, "saved MiB": saved})
    return rows


def _loss(case: DenseCase, images: Tensor, settings: Settings, training: bool) -> Callable[[], Tensor]:
    call = settings.wrap(case.outputs)

    def run() -> Tensor:
        with settings.autocast(training):
            return call(images)

    return run


def _no_grad(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return loss()

    return run


def _step(loss: Callable[[], Tensor], case: DenseCase) -> Callable[[], None]:
    def run() -> None:
        loss().backward()
        for part in (case.features, case.head):
            part.zero_grad(set_to_none=True)

    return run
