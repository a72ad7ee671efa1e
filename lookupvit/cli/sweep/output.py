"""The output of `lookupvit sweep`: tables, CSV, JSON, pictures, cascades, TensorBoard."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lookupvit.analysis.sweep import Contrast, contrast, hits, spread
from lookupvit.analysis.sweep_plots import Point, Series, macs_unit, plot_accuracy
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.cli.common.tables import new_table, write_csv
from lookupvit.cli.sweep.score import Found, measure_of, pixels_name
from lookupvit.grid import size_name
from lookupvit.writing import write_text

_NAMES = {**MEASURES, "top5": "top-5", "pixel_accuracy": "pixel accuracy", "ap50": "AP50"}
_LOG_WIDTH = 120  # a log file has no width of its own and must not lose columns


def contrasts_of(found: Found, runs: dict) -> list[Contrast]:
    """One model for all sizes against one per size, at each size, where both were trained.

    Args:
        found: The sweep.
        runs: The `Run` of each label that was trained here.
    """
    sizes = dict.fromkeys(run.size for run in runs.values() if run.size is not None)
    right: dict[tuple, dict] = {}
    if found.rows and measure_of(found.rows) != "top1":  # of segmenters the score of all images together
        scores = {
            (row["model"], tuple(row["compressed_size"] or ())): row[measure_of(found.rows)] for row in found.rows
        }
        for label, run in runs.items():
            for size in sizes if run.size is None else [run.size]:
                key = ("multi" if run.size is None else "single", size)
                right.setdefault(key, {})[run.seed] = scores[(label, size)]
        return [
            _contrast_of_scores(size, right[("multi", size)], right[("single", size)])
            for size in sizes
            if ("multi", size) in right
        ]
    for label, run in runs.items():
        for size in sizes if run.size is None else [run.size]:
            key = ("multi" if run.size is None else "single", size)
            right.setdefault(key, {})[run.seed] = hits(found.logits[label][size], found.targets[label])
    return [
        contrast(size, right[("multi", size)], right[("single", size)]) for size in sizes if ("multi", size) in right
    ]


def _contrast_of_scores(size: tuple, multi: dict[int, float], single: dict[int, float]) -> Contrast:
    """As `contrast`, from one score for each seed."""
    seeds = tuple(sorted(set(multi) & set(single)))
    return Contrast(size, seeds, tuple(multi[s] for s in seeds), tuple(single[s] for s in seeds), None)


def write_tables(document: dict, found: Found, contrasts: list[Contrast], stem: Path) -> list[Path]:
    """The rows as CSV, with sizes as text; as JSON everything, and how it was measured."""
    rows = [
        row | {"compressed_size": size_name(row["compressed_size"] or ()), "img_size": size_name(row["img_size"])}
        for row in found.rows
    ]
    document = document | {"rows": found.rows, "cascades": [study.as_dict() for study in found.studies]}
    if contrasts:
        document["multi_against_single"] = [one.as_dict() for one in contrasts]
    table = write_csv(rows, stem.with_name(f"{stem.name}.csv"))
    return [table, write_text(stem.with_name(f"{stem.name}.json"), json.dumps(document, indent=1) + "\n")]


def write_cascades(found: Found, stem: Path) -> list[Path]:
    """A file for `--model.cascade` for each fixed size whose cost pays for more than one stage."""
    paths = []
    for study in found.studies:
        for one in study.comparisons:
            if len(one.cascade.sizes) > 1:
                name = re.sub(r"[^\w.-]+", "_", f"{study.label}_{size_name(one.size)}")
                about = {
                    "target": f"the cost of {size_name(one.size)}",
                    "thresholds_from": f"{study.calibration_images} images, {study.thresholds_from}",
                    "top1": 100 * one.result.accuracy,
                    "macs": one.result.cost,
                    "figures_from": f"{study.images} images, {study.figures_from}",
                }
                owned = replace(one.cascade, model=study.model, img_size=study.img_size)
                paths.append(owned.save(stem.with_name(f"{stem.name}_cascades") / f"{name}.json", about))
    return paths


def write_tensorboard(rows: list[dict], contrasts: list[Contrast], stem: Path) -> Path:
    """HParams of every row, and its figures as scalars over the number of compressed tokens (0: a ViT)."""
    folder = stem.parent / "tensorboard" / stem.name
    shutil.rmtree(folder, ignore_errors=True)  # an earlier sweep of this name, whose points would stay
    scalars: dict[str, list[tuple[str, float, int]]] = {}
    for row in rows:
        size, img_size = row["compressed_size"], pixels_name(row["img_size"])
        name = f"{row['model']}/{img_size}px"
        figures = {
            f"sweep/{key}": float(row[key])
            for key in (*_shown(rows), "macs", "parameters", "images_per_second", "latency_ms", "peak_mib")
        }
        hparams = {"model": row["model"], "name": row["name"], "img_size": img_size, "head": row["head"]}
        hparams["compressed_size"] = size_name(size) if size else "-"
        tokens = size[0] * size[1] if size else 0
        with SummaryWriter(str(folder)) as writer:
            writer.add_hparams(hparams, figures, run_name=f"{name}/{hparams['compressed_size']}", global_step=tokens)
        scalars.setdefault(name, []).extend((key, value, tokens) for key, value in figures.items())
    for name, points in scalars.items():
        with SummaryWriter(str(folder / name)) as writer:  # one file per curve: files of one second have no order
            for point in points:
                writer.add_scalar(*point)
    if contrasts:
        with SummaryWriter(str(folder / "multi_against_single")) as writer:
            for one in contrasts:
                writer.add_scalar("sweep/multi_minus_single", mean(one.differences), one.size[0] * one.size[1])
    return folder


def write_pictures(found: Found, runs: dict, document: dict, stem: Path) -> list[Path]:
    """Accuracy against multiply-adds, against time, and the cascades; a PNG and an SVG each."""
    unit, name = macs_unit([row["macs"] for row in found.rows])
    axis = f"multiply-adds per image ({name})"
    measure = measure_of(found.rows)
    scale = {"ylabel": f"{MEASURES[measure]} {'accuracy ' * (measure == 'top1')}(%)"}
    macs = series_of(found.rows, runs, "macs", unit)
    paths = plot_accuracy(macs, stem.with_name(f"{stem.name}_macs"), axis, **scale)
    batch = document["settings"]["timed_batch"]
    where = f"time per image (ms, in batches of {batch})"
    times = series_of(found.rows, runs, "image_ms", 1)
    paths += plot_accuracy(times, stem.with_name(f"{stem.name}_time"), where, **scale)
    if found.studies:
        series = [one for study in found.studies for one in study.series(unit)]
        paths += plot_accuracy(series, stem.with_name(f"{stem.name}_cascade"), f"average {axis}", front=False)
    return paths


def series_of(rows: list[dict], runs: dict, cost: str, unit: float) -> list[Series]:
    """One series per model and image size; runs that differ by seed are one, with their standard deviation.

    Args:
        rows: Of the sweep.
        runs: The `Run` of each label that was trained here. A model trained at one size is drawn at that size.
        cost: Key of the cost in the rows.
        unit: What the cost is divided by.
    """
    pixels, measure = {tuple(row["img_size"]) for row in rows}, measure_of(rows)
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for row in rows:
        run = runs.get(row["model"])
        size = size_name(row["compressed_size"]) if row["compressed_size"] else ""
        if run is not None and run.size is not None and row["compressed_size"] != list(run.size):
            continue
        label = row["model"] if run is None else "one model, all sizes" if run.size is None else "one model per size"
        px = pixels_name(row["img_size"])
        name = size if len(pixels) == 1 else f"{size}@{px}" if size else f"{px} px"
        groups.setdefault((label, tuple(row["img_size"])), {}).setdefault(name, []).append(row)
    return [
        Series(
            label,
            tuple(
                Point(
                    mean(row[cost] for row in same) / unit,
                    mean(row[measure] for row in same),
                    name,
                    spread([row[measure] for row in same]),
                )
                for name, same in names.items()
            ),
        )
        for (label, _), names in groups.items()
    ]


def print_tables(found: Found, contrasts: list[Contrast], document: dict, console: Console) -> None:
    """The rows; where they were studied, the cascades; where both ways were trained, their difference."""
    console = console if console.is_terminal else Console(width=_LOG_WIDTH)
    console.print(_rows_table(found, document))
    if found.studies:
        console.print(_cascade_table(found))
    if contrasts:
        console.print(_contrast_table(contrasts, MEASURES[measure_of(found.rows)]))


def _shown(rows: list[dict]) -> tuple[str, str]:
    """The two accuracies that are shown of rows."""
    measure = measure_of(rows)
    return measure, {"top1": "top5", "miou": "pixel_accuracy", "ap": "ap50"}[measure]


def _rows_table(found: Found, document: dict) -> Table:
    rows, settings = found.rows, document["settings"]
    unit, name = macs_unit([row["macs"] for row in rows])
    pixels = len({tuple(row["img_size"]) for row in rows}) > 1
    main, second = _shown(rows)
    names = [f"{_NAMES[key]} %" for key in (main, second)]
    columns = ["model", "size", *["px"] * pixels, *names, name, "params", "images/s", "ms", "MiB", "*"]
    table = new_table(
        f"{document['title']}: {found.images} images of the {settings['split']} split",
        columns,
        ("model",),
        f"*: on the Pareto front of {_NAMES[main]} against {name} (m) or time (t). images/s and peak memory above the "
        f"weights: batches of {settings['timed_batch']}; ms: one image alone",
    )
    for i, row in enumerate(rows):
        if i and row["model"] != rows[i - 1]["model"]:
            table.add_section()
        table.add_row(
            row["model"],
            size_name(row["compressed_size"]) if row["compressed_size"] else "-",
            *([pixels_name(row["img_size"])] if pixels else []),
            f"{row[main]:.2f}",
            f"{row[second]:.2f}",
            f"{row['macs'] / unit:.3g}",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['images_per_second']:.0f}" if row["images_per_second"] >= 10 else f"{row['images_per_second']:.2f}",
            f"{row['latency_ms']:.3g}",
            f"{row['peak_mib']:.1f}",
            "m" * row["pareto_macs"] + "t" * row["pareto_time"],
        )
    return table


def _cascade_table(found: Found) -> Table:
    first = found.studies[0]
    unit, name = macs_unit([row["macs"] for row in found.rows])
    table = new_table(
        "cascade that may cost as much as each fixed size",
        ("model", "size", name, "top-1 %", "cascade", f"{name} of it", "top-1 % of it", "difference"),
        ("model", "cascade"),
        f"thresholds from {first.thresholds_from} ({first.calibration_images}), figures from "
        f"{first.figures_from} ({first.images}); difference with its standard error",
    )
    for study in found.studies:
        for one in study.comparisons:
            table.add_row(
                study.label,
                size_name(one.size),
                f"{one.fixed.cost / unit:.3g}",
                f"{100 * one.fixed.accuracy:.2f}",
                " > ".join(map(size_name, one.cascade.sizes)),
                f"{one.result.cost / unit:.3g}",
                f"{100 * one.result.accuracy:.2f}",
                f"{100 * one.difference:+.2f} ± {100 * one.standard_error:.2f}",
            )
        table.add_section()
    return table


def _contrast_table(contrasts: list[Contrast], measure: str) -> Table:
    seeds = contrasts[0].seeds
    table = new_table(
        f"one model for all sizes against one model per size, {measure} %, seeds {', '.join(map(str, seeds))}",
        ("size", "all sizes", "this size", "difference", "error"),
        caption="mean ± standard deviation over the seeds; error: standard error of the difference that the choice of "
        "images alone brings. Every model was trained for the same number of epochs",
    )
    for one in contrasts:
        cells = [_mean_and_spread(values) for values in (one.multi, one.single)]
        table.add_row(
            size_name(one.size),
            *cells,
            _mean_and_spread(one.differences, "+"),
            "-" if one.image_error is None else f"{one.image_error:.2f}",
        )
    return table


def _mean_and_spread(values: tuple[float, ...], sign: str = "") -> str:
    deviation = spread(values)
    return f"{mean(values):{sign}.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
