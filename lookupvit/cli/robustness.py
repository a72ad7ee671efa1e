"""`lookupvit robustness`: checkpoints on clean, corrupted and shifted images, in one pass; tables with errors."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from datamodules.robustness.sets import TestSet
from lookupvit.analysis.cost import count_macs, count_parameters
from lookupvit.bench.report import environment
from lookupvit.cli.common.arguments import OneLineParser, as_size, check_data_options
from lookupvit.cli.common.includes import expand_includes
from lookupvit.cli.common.loaded import Loaded, checkpoint_of, labels_of, load, with_data
from lookupvit.cli.common.tables import new_table, write_csv
from lookupvit.cli.robustness_scores import score_all, set_name, size_key
from lookupvit.grid import size_name
from lookupvit.metrics.robustness import CLEAN, summary_of
from lookupvit.writing import check_writable, write_text

_EPILOG = """\
A checkpoint, a compressed size and a set of images are scored once: what is in the output folder is not scored again,
so that an interrupted command goes on where it stopped, and a checkpoint that is added later is scored alone. Models
whose images are prepared alike share them. --data.* options (--data.root DIR) change the data of the configuration.
"""


def robustness(argv: list[str]) -> None:
    """Scores checkpoints on every test set of the data; writes JSON and CSV, and prints tables.

    Args:
        argv: Checkpoints, the data, and options of this command; see `lookupvit robustness --help`.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    args, passed = _parser().parse_known_args(argv)
    overrides = [*_data_of(args.config), *check_data_options("robustness", passed)]
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    paths = [checkpoint_of(name) for name in args.checkpoints]
    labels = args.labels or labels_of(paths)
    if len(labels) != len(paths):
        raise ValueError(f"{len(labels)} --labels for {len(paths)} checkpoints: give one each")
    if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"two checkpoints are named {twice[0]}: give other --labels")
    folder, console = Path(args.output), Console()
    check_writable(folder)
    loaded = [load(path, label, args.sizes, args.head, device) for path, label in zip(paths, labels, strict=True)]
    scored = score_all(with_data(loaded, overrides), folder / "scores", device, Console(stderr=True))

    rows, models = [], []
    base: tuple[Tensor, Tensor] | None = None
    for one in loaded:
        sets, kept = scored[one.label]
        for size in one.subject.sizes:
            hits = [kept.sets[set_name(test_set)][size_key(size)] for test_set in sets]
            own = [_row(test_set, hit) for test_set, hit in zip(sets, hits, strict=True)]
            figures, by_image = figures_of(sets, hits, own, base)
            base = base or by_image
            models.append(_about(one, size) | figures)
            named = {"model": one.label, "compressed_size": None if size is None else size_name(size)}
            rows += [named | row for row in own]
    document = {
        "title": args.title,
        "command": shlex.join(["lookupvit", "robustness", *argv]),
        "environment": environment(device),
        "models": models,
    }
    files = [
        write_text(folder / f"{args.title}.json", json.dumps(document, indent=1) + "\n"),
        write_csv(rows, folder / f"{args.title}.csv"),
    ]
    _print(models, console)
    console.print("wrote " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


def figures_of(
    sets: list[TestSet], hits: list[Tensor], rows: list[dict[str, Any]], base: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[str, Any], tuple[Tensor, Tensor] | None]:
    """What a model's table holds, in per cent and points; `_error` is the standard error of the choice of images.

    The corrupted versions of one image are no independent samples: the error of a mean over corruptions is that of the
    images' own means.

    Args:
        sets: Of the test.
        hits: Which images were right, `(n,)` bool for each set.
        rows: Of `_row`, for each set.
        base: The second result for the model to compare with; None for that model itself.

    Returns:
        The figures; and by image, whether it was right clean, and its share of right corrupted versions, `(n,)` each
        (None without a clean and a corrupted set of the same images).
    """
    summary = summary_of(rows)
    figures: dict[str, Any] = {"images": rows[0]["images"]}
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"]:
            by_part.setdefault(row["part"], []).append(row)
    plain = {row["set"]: 100 * row["top1"] for row in rows if not row["part"]}
    errors = {row["set"]: 100 * row["error"] for row in rows if not row["part"]}
    figures |= {"sets": plain, "sets_error": errors}
    figures["top1_by_severity"] = {part: [100 * row["top1"] for row in own] for part, own in by_part.items()}
    named = {set_name(one): hit.double() for one, hit in zip(sets, hits, strict=True)}
    corrupted = [named[set_name(one)] for one in sets if one.part]
    if CLEAN not in named or not corrupted or any(len(hit) != len(named[CLEAN]) for hit in corrupted):
        return figures, None
    clean, share = named[CLEAN], torch.stack(corrupted).mean(dim=0)  # every corruption has as many severities
    ratio = share.mean() / clean.mean()
    figures |= {"clean": 100 * clean.mean().item(), "clean_error": 100 * _error(clean)}
    figures |= {"corrupted": 100 * share.mean().item(), "corrupted_error": 100 * _error(share)}
    name = next(one.name for one in sets if one.part)
    drop = summary.get(f"{name}/relative_drop")  # none where nothing clean was right
    figures["relative_drop"] = None if drop is None else 100 * drop
    # of a ratio of means, to first order
    figures["relative_drop_error"] = None if drop is None else 100 * _error((share - ratio * clean) / clean.mean())
    if base is not None and len(base[0]) == len(clean):
        for key, mine, theirs in (("clean", clean, base[0]), ("corrupted", share, base[1])):
            figures[f"{key}_difference"] = 100 * (mine - theirs).mean().item()
            figures[f"{key}_difference_error"] = 100 * _error(mine - theirs)
    return figures, (clean, share)


def _error(values: Tensor) -> float:
    """Standard error of the mean of `(n,)`."""
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


def _row(one: TestSet, hit: Tensor) -> dict[str, Any]:
    top1 = hit.double().mean().item()
    return {
        "set": one.name,
        "part": one.part,
        "severity": one.severity,
        "images": len(hit),
        "top1": top1,
        "error": (top1 * (1 - top1) / len(hit)) ** 0.5,  # of a binomial
    }


def _about(one: Loaded, size: tuple[int, ...] | None) -> dict[str, Any]:
    model = one.subject.model
    return {
        "model": one.label,
        "name": one.task.hparams.name,
        "compressed_size": None if size is None else size_name(size),
        "parameters": count_parameters(model),
        "gmacs": count_macs(model, None, size, one.subject.head) / 1e9,
        "checkpoint": str(one.path),
    }


def _data_of(config: str | None) -> list[str]:
    """The section `data` of a configuration and of what it includes, as options."""
    options = []
    for value in expand_includes(["--config", config])[1::2] if config else []:
        text = value if value.lstrip().startswith("{") else Path(value).read_text(encoding="utf-8")
        section = (yaml.safe_load(text) or {}).get("data") or {}
        if "class_path" in section:
            options += ["--data", section["class_path"]]
        for name, setting in (section.get("init_args") or {}).items():
            options += [f"--data.{name}", json.dumps(setting)]
    if config and not options:
        raise ValueError(f"config {config} has no data: give one of configs/robustness")
    return options


def _print(models: list[dict[str, Any]], console: Console) -> None:
    columns = ("model", "tokens", "MMACs", "clean", "corrupted", "drop", "difference")
    caption = "in %, ± the standard error of the choice of images; drop: of the clean accuracy; difference: corrupted"
    table = new_table(f"{models[0]['images']} images", columns, ("model",), caption)
    for one in models:
        figures = [_with_error(one, key) for key in ("clean", "corrupted", "relative_drop", "corrupted_difference")]
        table.add_row(one["model"], one["compressed_size"] or "-", f"{1000 * one['gmacs']:.4g}", *figures)
    console.print(table)
    names = [f"{one['model']} {one['compressed_size'] or ''}".strip() for one in models]
    by_set = new_table("top-1 in %; of corruptions the mean over severities", ("set", *names), ("set",))
    for name in models[0]["sets"]:
        by_set.add_row(name, *(f"{one['sets'][name]:.1f}" for one in models))
    for name in models[0]["top1_by_severity"]:
        means = [sum(one["top1_by_severity"][name]) / len(one["top1_by_severity"][name]) for one in models]
        by_set.add_row(name, *(f"{value:.1f}" for value in means))
    console.print(by_set)


def _with_error(figures: dict[str, Any], key: str) -> str:
    if figures.get(key) is None:
        return ""
    return f"{figures[key]:{'+' if key.endswith('difference') else ''}.1f} ± {figures[f'{key}_error']:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit robustness",
        usage="lookupvit robustness CHECKPOINT... --config configs/robustness/imagenette_c.yaml [options]",
        description="Top-1 of many checkpoints on clean, corrupted and shifted images, each image corrupted once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints (or folders of runs), LookupViT and ViT"
    )
    parser.add_argument("--config", metavar="FILE", help="whose data to score on; of configs/robustness")
    text = "compressed sizes; by default those of each checkpoint"
    parser.add_argument("--sizes", nargs="+", type=as_size, metavar="HxW", help=text)
    parser.add_argument("--head", choices=("both", "compressed", "lookup"), help="the checkpoint's own by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda by default where there is one")
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="names in tables; NAME_seed0, NAME_seed1, ... are one"
    )
    parser.add_output_dir("outputs/robustness")
    parser.add_argument("--title", default="robustness", help="name of the files in it")
    return parser
