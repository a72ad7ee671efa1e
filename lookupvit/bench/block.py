"""Suite (c): one LookupViT block by itself, every path, against a ViT block on the same lookup tokens.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads.
"""

from collections.abc import Callable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lookupvit.bench.cases import DTYPES, Settings
from lookupvit.bench.memory import peak_bytes, saved_bytes
from lookupvit.bench.report import Report
from lookupvit.bench.suites import MIB, machine_of, new_report, timing_columns
from lookupvit.bench.timing import interleave, timer_for
from lookupvit.checks import PATHS, check_choice, check_heads
from lookupvit.model.block import LookupViTBlock
from lookupvit.model.flops import count_call_macs

BASELINE = "ViT block (timm)"
IMAGE_SHAPES = ((196, 9), (196, 25), (196, 49), (196, 100), (576, 25), (1024, 25), (4096, 49))
VIDEO_SHAPES = ((3136, 200),)  # 32 frames in tubelets of 2, 14 x 14; compressed to 8 x 5 x 5


def block(
    settings: Settings,
    shapes: tuple[tuple[int, int], ...] = IMAGE_SHAPES + VIDEO_SHAPES,
    batch: int = 4,
    dim: int = 768,
    num_heads: int = 12,
    training: bool = False,
    paths: tuple[str, ...] = PATHS,
    rounds: int = 7,
    min_seconds: float = 0.0,
) -> Report:
    """Times one block in each path.

    Args:
        settings: Device, dtype, compile mode.
        shapes: Pairs (N, M), one group each.
        batch: B.
        dim: D.
        num_heads: H.
        training: Forward and backward pass, with saved activations and peak memory; else the forward pass alone.
        paths: Paths of `LookupViTBlock`.
        rounds: At least 7 for figures that are to be quoted.
        min_seconds: See `interleave`.

    Raises:
        ValueError: For a path that does not exist, or heads that do not divide D.
    """
    check_heads(dim, num_heads)
    for path in paths:
        check_choice("path", path, PATHS)
    settings.apply()
    what = "forward and backward" if training else "forward"
    machine = machine_of(settings)
    report = new_report(f"One block, {what}, D={dim}, H={num_heads}, batch {batch}", settings, machine, ["N", "M"])
    dtype = torch.float32 if training else DTYPES[settings.dtype]
    blocks: dict[str, nn.Module] = {BASELINE: Block(dim, num_heads, qkv_bias=True)}
    blocks |= {path: LookupViTBlock(dim, num_heads, path=path) for path in paths}
    for module in blocks.values():
        module.to(settings.device, dtype).train(training)
    for n, m in shapes:
        lookup = torch.randn(batch, n, dim, device=settings.device, dtype=dtype, requires_grad=training)
        compressed = torch.randn(batch, m, dim, device=settings.device, dtype=dtype, requires_grad=training)
        losses = {name: _forward(module, compressed, lookup, settings) for name, module in blocks.items()}
        eager = Settings(settings.device, settings.dtype, settings.precision)
        plain = {name: _forward(module, compressed, lookup, eager) for name, module in blocks.items()}
        calls = {name: _backward(loss, blocks[name], compressed, lookup) for name, loss in losses.items()}
        if not training:
            calls = {name: _inference(loss) for name, loss in losses.items()}
        timer = timer_for(settings.device)
        label = f"block {n} x {m}"
        timings = interleave(calls, BASELINE, rounds, 2, timer, min_seconds, dict.fromkeys(calls, batch), label)
        first: dict | None = None
        for name, module in blocks.items():
            call = _backward(plain[name], module, compressed, lookup) if training else _inference(plain[name])
            macs = count_call_macs(call) / batch
            row = {"model": name if name == BASELINE else f"LookupViT block, {name}", "N": n, "M": m}
            row |= {"GMACs": macs / 1e9} | timing_columns(timings[name])
            del row["images/s"]  # a set of tokens is no image
            saved = None
            if training:
                known = [compressed, lookup, *module.parameters(), *module.buffers()]
                saved = saved_bytes(losses[name], known) / MIB
            first = first or {"macs": macs, "saved": saved}
            fewer = first["macs"] / macs
            row |= {"fewer ops": fewer, "realised": timings[name].ratio / fewer}
            if training:
                row |= {"saved MiB": saved, "saved": saved / first["saved"]}
                row["peak MiB"] = peak_bytes(calls[name], settings.device) / MIB
            row["floor ops"] = 1000 * machine.floors(batch * macs, 0)[0]
            report.rows.append(row)
    if training:
        report.notes.append("saved activations do not count the block's inputs, which the block before it holds")
    return report


def _forward(module: nn.Module, compressed: Tensor, lookup: Tensor, settings: Settings) -> Callable[[], Tensor]:
    """A scalar of everything that the block hands on, so that a backward pass reaches all of it."""

    def outputs() -> Tensor:
        if isinstance(module, LookupViTBlock):
            new_compressed, new_lookup = module(compressed, lookup)[:2]  # (B, M, D), (B, N, D)
            return new_compressed.sum() + new_lookup.sum()
        return module(lookup).sum()

    call = settings.wrap(outputs)

    def run() -> Tensor:
        with settings.autocast(lookup.requires_grad):  # in training only, as the models' steps
            return call()

    return run


def _inference(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return forward()

    return run


def _backward(forward: Callable[[], Tensor], module: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    def run() -> None:
        forward().backward()
        module.zero_grad(set_to_none=True)
        for tensor in inputs:
            tensor.grad = None

    return run
