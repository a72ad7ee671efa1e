"""One command for a GPU: eager and compiled, batch 1, 8 and the best, 224 and 384 px, and the training step.

Imports torch, torchvision, timm, numpy and the model only, and stops starting tables when its time is up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lookupvit.bench.cases import BASELINE, DTYPES, Case, Settings, image_cases
from lookupvit.bench.report import Report
from lookupvit.bench.suites import inference_rows, machine_of, new_report, place, train
from lookupvit.bench.timing import timer_for
from lookupvit.writing import write_text

MAX_BATCH = 4096
MIN_GAIN = 1.03  # a doubled batch that brings less than this is no gain


@dataclass
class Plan:
    """What to run, and for how long.

    Attributes:
        device: "cuda", or "cpu" to try the program out.
        model: Size by name.
        img_sizes: Pixels.
        sizes: Compressed sizes.
        tome: Numbers r of merged pairs.
        compiled: Names of the cases that are compiled too (a compilation takes tens of seconds).
        rounds: Rounds of each table.
        budget: Seconds after which no further table is started.
        max_batch: Where the search for the best batch ends.
        train_batch: Images of a training step.
        overrides: Arguments of the models.
        quick: See `Settings`.
    """

    device: str = "cuda"
    model: str = "base"
    img_sizes: tuple[int, ...] = (224, 384)
    sizes: tuple[int, ...] = (3, 5, 7, 10)
    tome: tuple[int, ...] = (8, 13, 16)
    compiled: tuple[str, ...] = (BASELINE, "LookupViT 5x5", "LookupViT 3x3")
    rounds: int = 9
    budget: float = 330.0
    max_batch: int = MAX_BATCH
    train_batch: int = 64
    overrides: dict | None = None
    quick: bool = False


def quick_plan(device: str) -> Plan:
    """Seconds on a CPU: a tiny model, to see that everything runs."""
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}
    return Plan(device, "tiny", (80,), (3, 5), (4,), (), 2, 330.0, 4, 2, small, True)


def best_batch(time_batch: Callable[[int], float | None], limit: int = MAX_BATCH, gain: float = MIN_GAIN) -> int:
    """The batch of the highest throughput, doubling from 1.

    Args:
        time_batch: Seconds of one call at a batch, or None where it does not fit into memory.
        limit: Largest batch to try.
        gain: Stop when two doublings in a row bring less than this factor (one can be an accident of tiling).

    Raises:
        ValueError: If not even one image fits.
    """
    best, best_rate, batch, idle = 0, 0.0, 1, 0
    while batch <= limit and idle < 2:
        seconds = time_batch(batch)
        if seconds is None:
            break
        rate = batch / seconds
        idle = 0 if rate > gain * best_rate else idle + 1
        if rate > best_rate:
            best, best_rate = batch, rate
        batch *= 2
    if not best:
        raise ValueError("not even a batch of one image fits into the memory of the device: choose a smaller model")
    return best


def run(plan: Plan, output: str | Path = "outputs/bench") -> list[Report]:
    """Runs the tables in order of weight until the time is up; gpu.md is written anew after each.

    Args:
        plan: What to run.
        output: Folder.

    Raises:
        ValueError: If the device is not there.
    """
    if plan.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible: run on a machine with a GPU, or try --device cpu --quick")
    deadline = time.monotonic() + plan.budget
    bench = _Bench(plan)
    first, *others = plan.img_sizes
    jobs: list[tuple[str, Callable[[], Report]]] = [(f"eager_{first}", lambda: bench.eager(first))]
    if plan.compiled:
        jobs.append((f"compiled_best_{first}", lambda: bench.compiled(first, "default", "best")))
        jobs.append((f"graphs_1_{first}", lambda: bench.compiled(first, "reduce-overhead", "1")))
    jobs.append(("train_eager", lambda: bench.train(first, None)))
    jobs += [(f"eager_{size}", lambda size=size: bench.eager(size)) for size in others]
    if plan.compiled:
        jobs.append(("train_compiled", lambda: bench.train(first, "default")))
        jobs += [(f"compiled_best_{s}", lambda s=s: bench.compiled(s, "default", "best")) for s in others]
        jobs.append((f"compiled_1_{first}", lambda: bench.compiled(first, "default", "1")))

    reports: list[Report] = []
    left_out: list[str] = []
    for stem, job in jobs:
        report = None
        if time.monotonic() > deadline:
            left_out.append(f"{stem}: not started, {plan.budget:.0f} s were over")
        else:
            try:
                report = job()
            except torch.OutOfMemoryError:
                left_out.append(f"{stem}: out of memory")
        if report:
            reports.append(report)
            report.show(plain=True)
            report.save(output, f"gpu_{stem}", picture=False)
        if plan.device.startswith("cuda"):
            torch.cuda.empty_cache()
        Path(output).mkdir(parents=True, exist_ok=True)
        text = "\n".join([*(each.to_markdown() for each in reports), *(f"Left out: {line}." for line in left_out), ""])
        write_text(Path(output) / "gpu.md", text)
    for line in left_out:
        print(f"left out: {line}", flush=True)
    return reports


class _Bench:
    """The tables; models and best batches are kept from one to the next."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.settings = Settings(plan.device, "bf16", quick=plan.quick)
        self.settings.apply()
        self.machine = machine_of(self.settings)
        self.cases: dict[int, tuple[list[Case], list[str]]] = {}
        self.best: dict[tuple[int, str], int] = {}

    def sizes(self, img_size: int) -> tuple[int, ...]:
        return tuple(size for size in self.plan.sizes if size <= img_size // 16)

    def cases_of(self, img_size: int) -> tuple[list[Case], list[str]]:
        if img_size not in self.cases:
            plan = self.plan
            made = image_cases(plan.model, img_size, self.sizes(img_size), plan.tome, **(plan.overrides or {}))
            place(made[0], self.settings)
            self.cases[img_size] = made
        return self.cases[img_size]

    def batches(self, cases: list[Case], img_size: int, label: str) -> dict[str, int]:
        if label != "best":
            return {case.name: int(label) for case in cases}
        for case in cases:
            if (img_size, case.name) not in self.best:
                self.best[img_size, case.name] = _best_batch_of(case, img_size, self.settings, self.plan.max_batch)
        return {case.name: self.best[img_size, case.name] for case in cases}

    def rows(self, cases: list[Case], img_size: int, label: str, settings: Settings) -> list[dict]:
        batches = self.batches(cases, img_size, label)
        seconds = _min_seconds(settings.device)
        rows = inference_rows(cases, img_size, batches, settings, self.machine, self.plan.rounds, 3, seconds)
        return [{"model": row.pop("model"), "batches": label, **row} for row in rows]

    def eager(self, img_size: int) -> Report:
        cases, notes = self.cases_of(img_size)
        title = f"Inference, {self.plan.model}/16, eager, {img_size} px"
        report = new_report(title, self.settings, self.machine, ["batches"])
        report.notes = list(notes)
        for label in ("1", "8", "best"):
            report.rows += self.rows(cases, img_size, label, self.settings)
        return report

    def compiled(self, img_size: int, mode: str, label: str) -> Report:
        cases = [case for case in self.cases_of(img_size)[0] if case.name in self.plan.compiled]
        title = f"Inference, {self.plan.model}/16, compiled ({mode}), {img_size} px, batch {label}"
        settings = replace(self.settings, compile=mode)
        report = new_report(title, settings, self.machine, ["batches"])
        report.rows = self.rows(cases, img_size, label, settings)
        return report

    def train(self, img_size: int, mode: str | None) -> Report:
        plan, sizes = self.plan, self.sizes(img_size)
        if mode:  # compiling forward and backward pass takes long: the baseline and one size tell the story
            sizes = tuple(size for size in sizes if size == 5) or sizes[:1]
        return train(
            replace(self.settings, compile=mode),
            plan.model,
            img_size,
            plan.train_batch,
            sizes,
            (),
            plan.rounds,
            warmup=3,
            min_seconds=_min_seconds(plan.device),
            **(plan.overrides or {}),
        )


def _min_seconds(device: str) -> float:
    return 0.03 if device.startswith("cuda") else 0.0  # a sample of many kernels, not of one launch


def _best_batch_of(case: Case, img_size: int, settings: Settings, limit: int) -> int:
    timer = timer_for(settings.device)

    def time_batch(batch: int) -> float | None:
        images = None
        try:
            images = torch.zeros(batch, 3, img_size, img_size, device=settings.device, dtype=DTYPES[settings.dtype])
            call = case.inference(images, settings)
            timer(call, 2)
            return min(timer(call, 3) / 3 for _ in range(2))
        except torch.OutOfMemoryError:
            del images
            torch.cuda.empty_cache()
            return None

    return best_batch(time_batch, limit)
