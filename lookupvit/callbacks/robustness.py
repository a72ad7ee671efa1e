"""The table of a robustness test: printed, and kept as JSON and CSV."""

import csv
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lookupvit.metrics.robustness import ALEXNET_ERRORS, corruption_errors
from lookupvit.writing import say, whole, write_text


class RobustnessTable(Callback):
    """Prints what `ClassificationTask` measured on the sets of a robustness data module, and writes it.

    `robustness.json` and `robustness.csv` go into the run's output folder: every set, corruption and severity at every
    compressed size, and the summary.

    Args:
        folder: Where to write; None is the run's output folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and writes, on one process."""
        found: dict[str, dict[str, Any]] = pl_module.robustness_results
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)  # on every rank: it is a collective
        if not found:
            raise ValueError("RobustnessTable needs a data module of robustness sets, such as CIFAR10CDataModule")
        if not trainer.is_global_zero:
            return
        write_text(folder / "robustness.json", json.dumps(found, indent=1) + "\n")
        with whole(folder / "robustness.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["compressed_size", "set", "part", "severity", "images", "top1"])
            writer.writeheader()
            for size, result in found.items():
                writer.writerows({"compressed_size": size, **row} for row in result["rows"])
        console = Console()
        console.print(summary_table(found))
        corrupted = {row["set"] for result in found.values() for row in result["rows"] if row["part"]}
        for name in sorted(corrupted):
            console.print(_by_corruption(name, found))
        say(f"wrote {folder / 'robustness.json'}, {folder / 'robustness.csv'}")


def summary_table(found: dict[str, dict[str, Any]]) -> Table:
    """The summaries of `RobustnessScores` by compressed size: shares times 100; the mCE is in per cent already."""
    table = Table(title="robustness, in %")
    table.add_column("measure")
    for size in found:
        table.add_column(size, justify="right")
    for measure in next(iter(found.values()))["summary"]:
        scale = 1 if measure.endswith("/mce") else 100
        table.add_row(measure, *(f"{scale * result['summary'][measure]:.2f}" for result in found.values()))
    return table


def _by_corruption(name: str, found: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"top-1 error in % on {name}, mean over severities")
    table.add_column("corruption")
    for size in found:
        table.add_column(size, justify="right")
    if name == "imagenet-c":
        table.add_column("AlexNet", justify="right")
    columns = [corruption_errors([row for row in r["rows"] if row["set"] == name]) for r in found.values()]
    for part in columns[0]:
        reference = [f"{100 * ALEXNET_ERRORS[part]:.1f}"] if name == "imagenet-c" else []
        table.add_row(part, *(f"{100 * errors[part]:.1f}" for errors in columns), *reference)
    return table
