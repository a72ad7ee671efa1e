"""The suites: each turns cases into one `Report`. Ratios are always against the baseline of the same group."""

from collections.abc import Callable

import torch
from torch import Tensor

from lookupvit.bench.cases import BASELINE, DTYPES, Case, Settings, check_model, image_cases
from lookupvit.bench.floors import Machine, least_bytes, measure_machine
from lookupvit.bench.memory import peak_bytes, saved_bytes
from lookupvit.bench.report import Report, environment
from lookupvit.bench.timing import Timing, interleave, timer_for
from lookupvit.model.flops import count_call_macs

MIB = 1 << 20


def timing_columns(timing: Timing) -> dict:
    """The columns that every timed row has: milliseconds, spread and rate."""
    low, high = (1000 * value for value in timing.quartiles)
    return {
        "ms": 1000 * timing.median,
        "min": 1000 * timing.fastest,
        "q1-q3": f"{low:.4g}-{high:.4g}",
        "images/s": timing.rate,
        "faster": timing.ratio,
    }


def operation_columns(timing: Timing, macs: float, baseline_macs: float) -> dict:
    """The operation ratio, and the realised part of it. Both counts are of one image."""
    fewer = baseline_macs / macs
    return {"fewer ops": fewer, "realised": timing.ratio / fewer}


def inference_rows(
    cases: list[Case],
    img_size: int,
    batches: dict[str, int],
    settings: Settings,
    machine: Machine | None,
    rounds: int,
    warmup: int = 2,
    min_seconds: float = 0.0,
) -> list[dict]:
    """One group of the inference table: every case at one image size.

    Args:
        cases: On the device, in the dtype, in eval mode.
        img_size: Pixels.
        batches: Batch of each case, by name.
        settings: How to run.
        machine: For the floors; None leaves them out.
        rounds: See `interleave`.
        warmup: See `interleave`.
        min_seconds: See `interleave`.
    """
    images = torch.randn(max(batches.values()), 3, img_size, img_size, device=settings.device)
    images = images.to(DTYPES[settings.dtype])
    calls = {case.name: case.inference(images[: batches[case.name]], settings) for case in cases}
    timer = timer_for(settings.device, latency=max(batches.values()) == 1)
    label = f"{img_size} px, batch {'/'.join(map(str, sorted(set(batches.values()))))}"
    timings = interleave(calls, BASELINE, rounds, warmup, timer, min_seconds, batches, label)
    baseline = next(case for case in cases if case.name == BASELINE)
    rows = []
    for case in cases:
        timing, batch = timings[case.name], batches[case.name]
        row = {"model": case.name, "px": img_size, "batch": batch, "GMACs": case.macs / 1e9}
        row |= timing_columns(timing) | operation_columns(timing, case.macs, baseline.macs)
        if machine:
            ops, moved = machine.floors(batch * case.macs, least_bytes(case.model, images[:batch]))
            row |= {"floor ops": 1000 * ops, "floor bytes": 1000 * moved}
        rows.append(row)
    return rows


def inference(
    settings: Settings,
    model: str = "base",
    img_sizes: tuple[int, ...] = (224,),
    batches: tuple[int, ...] = (1, 8),
    sizes: tuple[int, ...] = (3, 5, 7, 10),
    tome: tuple[int, ...] = (8, 13, 16),
    rounds: int = 7,
    **kwargs,
) -> Report:
    """Suite (a): throughput and latency.

    Args:
        settings: Device, dtype, compile mode.
        model: Size by name.
        img_sizes: Pixels.
        batches: Images per call.
        sizes: Compressed sizes; those that an image size has no room for are left out, with a note.
        tome: Numbers r of merged pairs.
        rounds: At least 7 for figures that are to be quoted.
        **kwargs: Further arguments of `image_cases`.

    Returns:
        The table, one group for each image size and batch.
    """
    check_model(model)
    settings.apply()
    machine = machine_of(settings)
    report = new_report(f"Inference, {model}/16", settings, machine, ["px", "batch"])
    for img_size in img_sizes:
        fitting = tuple(size for size in sizes if size <= img_size // 16)
        if fitting != sizes:
            report.notes.append(f"at {img_size} px only {fitting} of the sizes {sizes} fit")
        cases, notes = image_cases(model, img_size, fitting, tome, **kwargs)
        place(cases, settings)
        for batch in batches:
            report.rows += inference_rows(
                cases, img_size, {case.name: batch for case in cases}, settings, machine, rounds
            )
        report.notes += [note for note in notes if note not in report.notes]
    return report


def train(
    settings: Settings,
    model: str = "base",
    img_size: int = 224,
    batch: int = 8,
    sizes: tuple[int, ...] = (3, 5, 7, 10),
    tome: tuple[int, ...] = (),
    rounds: int = 7,
    warmup: int = 2,
    optimizer: str = "adamw",
    min_seconds: float = 0.0,
    **kwargs,
) -> Report:
    """Suite (b): the training step (loss, backward pass, and the step of a fused AdamW): time and memory.

    Args:
        settings: Device, dtype, compile mode.
        model: Size by name.
        img_size: Pixels.
        batch: Images per step.
        sizes: Compressed sizes.
        tome: Numbers r of merged pairs of ToMe, which is trained through.
        rounds: At least 7 for figures that are to be quoted.
        warmup: Steps before the timed ones.
        optimizer: "adamw", or "none" for forward and backward pass alone.
        min_seconds: See `interleave`.
        **kwargs: Further arguments of `image_cases`.

    Returns:
        The table; its GMACs are those of forward and backward pass, per image.
    """
    if optimizer not in ("adamw", "none"):
        raise ValueError(f"optimizer={optimizer!r} is not known: choose adamw or none")
    check_model(model)
    settings.apply()
    machine = machine_of(settings)
    report = new_report(f"Training step, {model}/16, {img_size} px, batch {batch}", settings, machine)
    report.settings["optimiser"] = optimizer
    cases, notes = image_cases(model, img_size, sizes, tome, look_vit=False, **kwargs)
    place(cases, settings, training=True)
    images = torch.randn(batch, 3, img_size, img_size, device=settings.device)
    targets = torch.arange(batch, device=settings.device) % cases[0].model.num_classes
    optimizers = {}  # one for each model, however many cases share it
    steps, losses = {}, {}
    for case in cases:
        if optimizer == "adamw" and _core(case) not in optimizers:
            optimizers[_core(case)] = torch.optim.AdamW(case.model.parameters(), lr=1e-5, fused=True)
        losses[case.name] = case.forward_loss(images, targets, settings)
        steps[case.name] = training_step(losses[case.name], case, optimizers.get(_core(case)))
    timer = timer_for(settings.device)
    timings = interleave(steps, BASELINE, rounds, warmup, timer, min_seconds, dict.fromkeys(steps, batch), report.title)
    eager = Settings(settings.device, settings.dtype, settings.precision)  # compiled graphs hide what they execute
    first: dict | None = None
    for case in cases:
        loss = case.forward_loss(images, targets, eager)
        macs = count_call_macs(training_step(loss, case, None)) / batch
        known = [*case.model.parameters(), *case.model.buffers()]
        saved = saved_bytes(losses[case.name], known) / MIB
        peak = peak_bytes(steps[case.name], settings.device) / MIB
        first = first or {"macs": macs, "saved": saved}
        row = {"model": case.name, "batch": batch, "GMACs": macs / 1e9} | timing_columns(timings[case.name])
        row |= operation_columns(timings[case.name], macs, first["macs"])
        row |= {"saved MiB": saved, "saved": saved / first["saved"], "peak MiB": peak}
        row["floor ops"] = 1000 * machine.floors(batch * macs, 0)[0]
        report.rows.append(row)
    report.notes += notes
    return report


def training_step(loss: Callable[[], Tensor], case: Case, optimizer: torch.optim.Optimizer | None) -> Callable:
    """Loss, backward pass and, if there is one, the optimiser's step."""

    def step() -> None:
        loss().backward()
        if optimizer is not None:
            optimizer.step()
        case.model.zero_grad(set_to_none=True)

    return step


def place(cases: list[Case], settings: Settings, training: bool = False) -> None:
    """Moves the models to the device, in the dtype and the mode that they are measured in."""
    for case in cases:
        dtype = torch.float32 if training or case.autocast else DTYPES[settings.dtype]
        case.model.to(settings.device, dtype).train(training)


def _core(case: Case) -> int:
    """Identity of the weights: ToMe shares those of the ViT."""
    return id(next(case.model.parameters()))


def machine_of(settings: Settings) -> Machine:
    """Measures the machine in the dtype of the settings."""
    small = {"gemm_sizes": (256,), "copy_bytes": 1 << 22, "tries": 1} if settings.quick else {}
    return measure_machine(DTYPES[settings.dtype], settings.device, **small)


def new_report(title: str, settings: Settings, machine: Machine, groups: list[str] | None = None) -> Report:
    """An empty report that says how and where it is measured."""
    rates = {"matrix rate": f"{machine.flops / 1e9:.0f} GFLOP/s", "bandwidth": f"{machine.bandwidth / 1e9:.0f} GB/s"}
    return Report(title, [], environment(settings.device) | settings.describe() | rates, [], groups or [])
