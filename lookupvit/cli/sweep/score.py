"""Scores all models and sizes in one pass over the data, then measures their times and memory in turn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lookupvit.analysis.cascade.study import CascadeStudy, study_cascade
from lookupvit.analysis.cost import count_macs, count_parameters
from lookupvit.analysis.pareto import pareto_front
from lookupvit.analysis.sweep import Size, accuracy, collect_detections, collect_logits, collect_scores
from lookupvit.bench.memory import peak_bytes
from lookupvit.bench.timing import interleave, timer_for
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.cli.common.loaded import Loaded, calibration_loader, loader_of, with_data
from lookupvit.grid import size_name
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter

_MIN_SECONDS = 0.05  # of one timing sample
Logits = dict[str, dict[Size | None, Tensor]]


@dataclass
class Found:
    """The results of a sweep.

    Attributes:
        rows: One row per model, image size and compressed size.
        images: Number of scored images.
        studies: Studies of cascades.
        logits: `(n, C)` by label and size, at the last image size.
        targets: By label, `(n,)`, at the last image size.
    """

    rows: list[dict] = field(default_factory=list)
    images: int = 0
    studies: list[CascadeStudy] = field(default_factory=list)
    logits: Logits = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)


def score(
    loaded: list[Loaded],
    overrides: list[str],
    img_sizes: list[tuple[int, int] | None],
    split: str,
    limit: int | None,
    batch: int,
    rounds: int,
    device: str,
    cascades: list[str],
) -> Found:
    """Scores and measures every model at every size.

    Args:
        loaded: Models, by different labels.
        overrides: `--data.*` options.
        img_sizes: Pixels; None for those of the data.
        split: "test" or "val".
        limit: Images to score; None for all.
        batch: Images per call when throughput and memory are measured.
        rounds: Of timing.
        device: Where the models are.
        cascades: Labels of the models to study cascades of, where they have two sizes or more.

    Raises:
        ValueError: In one line, if models, sizes, images or options do not go together.
    """
    # Every mistake is found before the first pass.
    plan = []
    kinds = {_kind(one.subject.model): one.label for one in reversed(loaded)}
    if len(kinds) > 1:
        told = ", ".join(f"{label} is a {kind}" for kind, label in kinds.items())
        raise ValueError(f"{told}: sweep models of one kind at a time")
    dense = "classifier" not in kinds
    if dense and img_sizes != [None]:
        raise ValueError(
            "--img_size is for classifiers: segmenters and detectors see whole images, give --data.short_side"
        )
    for img_size in img_sizes:
        plan += with_data(loaded, overrides, img_size)

    found, cases = Found(), {}
    for data, group in plan:
        loader = loader_of(data, split, limit)
        if dense:
            with _bar("scoring", loader) as advance:
                subjects = {one.label: one.subject for one in group}
                if "detector" in kinds:
                    scores, found.images = collect_detections(subjects, loader, device, advance)
                else:
                    views = {one.label: one.task.view for one in group}
                    scores, found.images = collect_scores(subjects, loader, views, device, advance)
            for one in group:
                for size in one.subject.sizes:
                    found.rows.append(_row(one, size, data.img_size, found.images, scores[one.label][size]))
                    cases[(one.architecture, one.subject.head, size, data.img_size)] = one
            continue
        logits, targets = _collect(group, loader, device, "scoring")
        many = [one for one in group if one.label in cascades and len(one.subject.sizes) > 1]
        validation = calibration_loader(data, split, loader, limit) if many else None
        known = None if validation is None else _collect(many, validation, device, "calibrating")
        for one in many:
            held = None if known is None else (known[0][one.label], known[1])
            name = one.label if len(img_sizes) == 1 else f"{one.label}, {pixels_name(data.img_size)} px"
            found.studies.append(study_cascade(name, one.subject, data.img_size, logits[one.label], targets, held))
        for one in group:
            for size in one.subject.sizes:
                scores = _accuracies(logits[one.label][size], targets)
                found.rows.append(_row(one, size, data.img_size, len(targets), scores))
                cases[(one.architecture, one.subject.head, size, data.img_size)] = one
        found.logits |= logits
        found.targets |= {one.label: targets for one in group}
        found.images = len(targets)

    measured = _measure(cases, batch, rounds, device)
    places = {one.label: i for i, one in enumerate(loaded)}
    by_label = {one.label: one for one in loaded}
    for row in found.rows:
        one = by_label[row["model"]]
        size = tuple(row["compressed_size"]) if row["compressed_size"] else None
        row.update(measured[(one.architecture, one.subject.head, size, tuple(row["img_size"]))])
    found.rows.sort(key=lambda row: places[row["model"]])  # stable: image sizes and sizes keep their order
    _mark_fronts(found.rows)
    return found


def _kind(model: nn.Module) -> str:
    if isinstance(model, Detector):
        return "detector"
    return "segmenter" if isinstance(model, Segmenter) else "classifier"


def measure_of(rows: list[dict[str, Any]]) -> str:
    """The accuracy that rows have, a key of `MEASURES`."""
    return next(measure for measure in MEASURES if measure in rows[0])


def pixels_name(img_size: tuple[int, int]) -> str:
    """An image size as text: "48", or "48x64" for height x width."""
    height, width = img_size
    return str(height) if height == width else size_name((height, width))


def _collect(group: list[Loaded], loader: DataLoader, device: str, label: str) -> tuple[Logits, Tensor]:
    subjects = {one.label: one.subject for one in group}
    with _bar(label, loader) as advance:
        return collect_logits(subjects, loader, device, advance)


@contextmanager
def _bar(label: str, loader: DataLoader) -> Iterator[Callable[[int], None]]:
    """A progress bar over images, on a terminal; yields what moves it on."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{label}: {len(loader.dataset)} images", total=len(loader.dataset))
        yield lambda images: progress.advance(bar, images)


def _accuracies(logits: Tensor, targets: Tensor) -> dict[str, float]:
    top1 = accuracy(logits, targets)
    error = (top1 * (100 - top1) / len(targets)) ** 0.5  # binomial standard error, in points
    return {"top1": top1, "top1_error": error, "top5": accuracy(logits, targets, 5)}


def _row(
    one: Loaded, size: Size | None, img_size: tuple[int, int], images: int, scores: dict[str, float]
) -> dict[str, Any]:
    subject = one.subject
    return {
        "model": one.label,
        "name": one.task.hparams.name,
        "compressed_size": list(size) if size else None,
        "img_size": list(img_size),
        "head": subject.head or ("both" if size and len(getattr(subject.model, "heads", ())) > 1 else "own"),
        "images": images,
        **scores,
        "macs": count_macs(subject.model, img_size, size, subject.head),
        "parameters": count_parameters(subject.model),
        "checkpoint": str(one.path),
    }


def _call(one: Loaded, size: Size | None, images: Tensor):
    """The model's call on a batch, as a function without arguments."""
    if size is None:
        return lambda: one.subject.model(images)
    return lambda: one.subject.model(images, compressed_size=size, head=one.subject.head)


def _measure(cases: dict[tuple, Loaded], batch: int, rounds: int, device: str) -> dict[tuple, dict]:
    """Throughput, latency and memory of each case; those of one batch size take turns."""
    times = {}
    with torch.inference_mode():
        for count, label in ((batch, "throughput"), (1, "latency")):
            images = {size: torch.randn(count, 3, *size, device=device) for *_, size in cases}
            calls = {key: _call(one, key[2], images[key[3]]) for key, one in cases.items()}
            times[label] = interleave(
                calls,
                next(iter(calls)),
                rounds,
                timer=timer_for(device, latency=label == "latency"),
                min_seconds=_MIN_SECONDS,
                items=dict.fromkeys(calls, count),
                label=label,
            )
            if label == "throughput":
                peaks = {key: peak_bytes(call, device) for key, call in calls.items()}
    return {
        key: {
            "images_per_second": times["throughput"][key].rate,
            "image_ms": 1000 / times["throughput"][key].rate,
            "latency_ms": 1000 * times["latency"][key].median,
            "peak_mib": peaks[key] / 2**20,
        }
        for key in cases
    }


def _mark_fronts(rows: list[dict]) -> None:
    """Notes which rows no other row beats, by multiply-adds and by time."""
    for name, cost in (("pareto_macs", "macs"), ("pareto_time", "image_ms")):
        best = set(pareto_front([row[cost] for row in rows], [row[measure_of(rows)] for row in rows]))
        for i, row in enumerate(rows):
            row[name] = i in best
