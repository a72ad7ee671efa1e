"""`lookupvit ablate`: a baseline and its variations, several seeds each, as a table of differences."""

import argparse
import json
import re
import shlex
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from lookupvit.analysis.cost import count_macs, count_parameters
from lookupvit.analysis.plots import plot_differences, read_scalars, scalar_tags
from lookupvit.bench.report import environment
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.cli.common.tables import new_table, write_csv
from lookupvit.cli.fit import run as run_command
from lookupvit.cli.launch.options import add_launch_options, launch_of
from lookupvit.cli.runs import Planned, Trained, train
from lookupvit.cli.settings import common_measure, common_output, here, resolve
from lookupvit.grid import size_name
from lookupvit.writing import check_writable, write_text

_EPILOG = """\
The first configuration is what the others are compared with, seed by seed. Runs that are finished are not run again;
one that was interrupted goes on from its last checkpoint. Any option of fit is handed to every run.
"""


def ablate(argv: list[str]) -> None:
    """Trains and tests every configuration with every seed; writes a table as JSON, CSV, Markdown and a picture.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    args, passed = _parser().parse_known_args(argv)
    launch = launch_of(args)
    names = [Path(config).stem for config in args.configs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two configurations are named {twice.pop()}: their runs would share a folder")
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--seeds {' '.join(map(str, args.seeds))}: each once")
    console = Console()
    settings = {file: resolve(["--config", file, *passed]) for file in args.configs}
    measure = common_measure(settings)
    # by default where the configurations say
    folder = common_output(settings) / "ablation" if args.output is None else Path(args.output)
    # seed by seed, so that what an interrupted grid leaves can be compared
    runs = [(name, config, seed) for seed in args.seeds for name, config in zip(names, args.configs, strict=True)]
    planned = [
        Planned(f"{name}_seed{seed}", ["--config", config, *passed, "--seed_everything", str(seed)])
        for name, config, seed in runs
    ]
    check_writable(folder)
    trained = train(planned, folder, console, launch=launch)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for (name, config, seed), one in zip(runs, trained, strict=True):
        found[name].append({"seed": seed, **_tested(one, folder / one.name, config, passed, measure)})
    rows = rows_of(found, measure)
    document = {
        "title": args.title,
        "command": shlex.join(["lookupvit", "ablate", *argv]),
        "environment": environment("cpu"),
        "baseline": names[0],
        "measure": measure,
        "rows": rows,
        "runs": found,
    }
    files = [
        write_text(folder / f"{args.title}.json", json.dumps(document, indent=1) + "\n"),
        write_csv(rows, folder / f"{args.title}.csv"),
        write_text(folder / f"{args.title}.md", markdown(rows)),
        _draw(rows, folder / f"{args.title}.png"),
    ]
    console.print(_table(rows))
    console.print("wrote " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


def rows_of(found: dict[str, list[dict[str, Any]]], measure: str = "top1") -> list[dict[str, Any]]:
    """One row per configuration: mean and standard deviation of the accuracy, and of its differences from the baseline.

    Args:
        found: Runs by configuration, the baseline first; each in the same order of seeds.
        measure: The accuracy, a key of `MEASURES`.
    """
    base = next(iter(found.values()))
    rows = []
    for name, runs in found.items():
        values = [run[measure] for run in runs]
        differences = [run[measure] - other[measure] for run, other in zip(runs, base, strict=True)]
        seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
        rows.append(
            {
                "name": name,
                "compressed_size": runs[0]["compressed_size"],
                "parameters": runs[0]["parameters"],
                "gmacs": runs[0]["gmacs"],
                "seeds": len(runs),
                measure: mean(values),
                f"{measure}_std": _deviation(values),
                "difference": mean(differences),
                "difference_std": _deviation(differences),
                "fit_seconds": mean(seconds) if seconds else None,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for a document."""
    lines = [
        f"| variant | compressed | parameters | MMACs | {MEASURES[_measure(rows)]} % | difference | fit |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows)]) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit ablate",
        usage="lookupvit ablate BASELINE.yaml VARIANT.yaml ... [--seeds 0 1 2] [options of fit]",
        description="Train and test a baseline and its variations, several seeds each; resumable.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration files, the baseline first")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="one training of each per seed (0)"
    )
    text = "folder of the runs and of the table; by default ablation in the configurations' own, outputs/ablation"
    parser.add_output_dir(text=text)
    parser.add_argument("--title", default="ablation", help="name of the files with the table")
    add_launch_options(parser.add_argument_group("many at once"))
    return parser


def _tested(one: Trained, folder: Path, config: str, passed: list[str], measure: str) -> dict[str, Any]:
    """The test metrics of a run; they are kept in its folder, so that they are measured once."""
    file = folder / "test.json"
    if not file.is_file():
        argv = ["test", "--config", config, *passed, "--ckpt_path", str(one.checkpoint), *here(folder)]
        done = run_command([*argv, "--name", "test", "--trainer.logger", "false"])
        model = done.model.model.eval()
        metrics = {name: float(value) for name, value in done.trainer.callback_metrics.items()}
        figures = {
            "model": done.model.hparams.name,
            "compressed_size": None if model.compressed_size is None else size_name(model.compressed_size),
            "parameters": count_parameters(model),
            "gmacs": count_macs(model) / 1e9,
            measure: 100 * metrics[f"test/{measure}"],
            "metrics": metrics,
        }
        write_text(file, json.dumps(figures, indent=1) + "\n")
    done = {"epochs": one.epochs, "steps": one.steps, "seconds": one.seconds, "validations": _validations(folder)}
    return {**json.loads(file.read_text()), **done}


def _validations(folder: Path) -> list[dict[str, float]]:
    """One row per validation of a run, over all of its parts: step, accuracies, and the training loss since the last.

    The keys are those of the log, `val/top1` or, of several compressed sizes, `val/top1@3x3` and so on.
    """
    kept = re.compile(rf"train/loss|val/(loss|{'|'.join(MEASURES)})(@.*)?")
    found: dict[str, dict[int, float]] = {}
    for part in sorted(folder.glob("version_*"), key=lambda path: path.stat().st_mtime):
        for tag in scalar_tags(part):
            if kept.fullmatch(tag):  # a later part goes over a step again
                found.setdefault(tag, {}).update(zip(*read_scalars(part, tag), strict=True))
    losses, rows, before = found.pop("train/loss", {}), [], -1
    for step in sorted({step for values in found.values() for step in values}):
        since = [loss for at, loss in losses.items() if before < at <= step]
        row = {"step": step} | ({"train/loss": mean(since)} if since else {})
        rows.append(row | {tag: values[step] for tag, values in found.items() if step in values})
        before = step
    return rows


def _measure(rows: list[dict[str, Any]]) -> str:
    """The accuracy that rows have."""
    return next(measure for measure in MEASURES if measure in rows[0])


def _deviation(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _cells(row: dict[str, Any]) -> list[str]:
    measure = _measure([row])
    spread = "" if row[f"{measure}_std"] is None else f" ± {row[f'{measure}_std']:.2f}"
    apart = "" if row["difference_std"] is None else f" ± {row['difference_std']:.2f}"
    return [
        row["name"],
        row["compressed_size"] or "-",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{1000 * row['gmacs']:.3g}",
        f"{row[measure]:.2f}{spread}",
        f"{row['difference']:+.2f}{apart}",
        "-" if row["fit_seconds"] is None else f"{row['fit_seconds']:.0f} s",
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = ("variant", "tokens", "params", "MMACs", f"{MEASURES[_measure(rows)]} %", "difference", "fit")
    caption = f"mean ± standard deviation over {rows[0]['seeds']} seeds" if rows[0]["seeds"] > 1 else "one seed"
    table = new_table(f"differences from {rows[0]['name']} by seed", columns, ("variant",), caption)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _draw(rows: list[dict[str, Any]], path: Path) -> Path:
    points = {row["name"]: (row["difference"], row["difference_std"]) for row in rows[1:]}
    return plot_differences(points, f"{MEASURES[_measure(rows)]} minus that of {rows[0]['name']}, points", path)
