"""A finished measurement: a table for people, JSON and CSV for programs, a plot."""

import csv
import io
import json
import platform
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

import torch

from lookupvit.writing import whole, write_text

# Names of columns whose fuller meaning belongs under a table.
LEGEND = {
    "GMACs": "1e9 multiply-adds of one image (in training, of its forward and backward pass)",
    "ms": "median of one call over the rounds; `min` and `q1-q3` its least and its quartiles",
    "faster": "median over the rounds of the baseline's time per image over this one's",
    "fewer ops": "the baseline's multiply-adds over this one's",
    "realised": "`faster` over `fewer ops`: how much of the saved arithmetic is saved time",
    "floor ops": "least ms: multiply-adds at the best matrix rate measured here",
    "floor bytes": "least ms: every weight and the input read once at the bandwidth measured here",
    "saved MiB": "activations that autograd keeps from the forward to the backward pass",
    "saved": "`saved MiB` over the baseline's",
    "peak MiB": "most memory allocated during the step, above parameters, optimiser state and inputs",
    "fwd": "operators dispatched in the forward pass, without views and allocations: on a GPU each starts a kernel",
    "fwd types": "of these, copies from one number type to another, of weights too",
    "fwd copies": "of these, all other copies",
    "fwd A MiB": "bytes written to tensors of A's size",
    "fwd all": "all dispatched operators, with views and allocations",
    "step": "the same for forward and backward pass together, and so the columns after it",
}


@dataclass
class Report:
    """One table.

    Attributes:
        title: What was compared.
        rows: One dict per line; columns are the keys in order of first appearance.
        settings: How it was measured: device, dtype, threads, versions.
        notes: Sentences to print below, for example what was left out and why.
        groups: Columns that tell the groups apart within which the ratios were taken.
    """

    title: str
    rows: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Column names in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def cells(self) -> list[list[str]]:
        """The rows as text, in the order of `columns`."""
        return [[format_value(row.get(column)) for column in self.columns] for row in self.rows]

    def to_markdown(self) -> str:
        """A heading, the settings, a table, the notes and the legend of its columns."""
        lines = [f"### {self.title}", "", settings_line(self.settings), ""]
        if self.rows:
            numeric = [any(isinstance(r.get(c), int | float) for r in self.rows) for c in self.columns]
            lines.append("| " + " | ".join(self.columns) + " |")
            lines.append("|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|")
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.cells()]
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        legend = [f"`{column}`: {LEGEND[column]}" for column in self.columns if column in LEGEND]
        if legend:
            lines += ["", "; ".join(legend) + "."]
        return "\n".join(lines).rstrip() + "\n"

    def to_json(self) -> str:
        """All of it; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_csv(self) -> str:
        """The rows alone, with full precision."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def show(self, plain: bool = False) -> None:
        """Prints the table: with rich where it is installed (and not `plain`), else as aligned text."""
        if plain:
            print(self.to_text(), flush=True)
            return
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            print(self.to_text(), flush=True)
            return
        table = Table(title=self.title, caption="\n".join(self.notes) or None, title_justify="left")
        for column in self.columns:
            right = any(isinstance(row.get(column), int | float) for row in self.rows)
            table.add_column(column, justify="right" if right else "left", no_wrap=True)
        last = None
        for row, cells in zip(self.rows, self.cells(), strict=True):
            group = [row.get(name) for name in self.groups]
            if last not in (None, group):
                table.add_section()
            table.add_row(*cells)
            last = group
        console = Console()
        # a log file has no width of its own and must not lose columns
        console = console if console.is_terminal else Console(width=200)
        console.print(settings_line(self.settings), style="dim", highlight=False)
        console.print(table)

    def to_text(self) -> str:
        """The table in plain, aligned text."""
        lines = [self.columns, *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.title, settings_line(self.settings), *body, *self.notes, ""])

    def save(self, folder: str | Path, stem: str, picture: bool = True) -> list[Path]:
        """Writes `stem`.md, .json and .csv, and .png where there are ratios and matplotlib is installed.

        Args:
            folder: Made where it is missing.
            stem: File name without an ending.
            picture: False leaves the .png out.

        Returns:
            The files written.
        """
        folder = Path(folder)
        texts = {".md": self.to_markdown(), ".json": self.to_json(), ".csv": self.to_csv()}
        paths = [write_text(folder / f"{stem}{ending}", text) for ending, text in texts.items()]
        if picture and plot(self, folder / f"{stem}.png"):
            paths.append(folder / f"{stem}.png")
        return paths


def plot(report: Report, path: Path) -> bool:
    """Bars of the time ratio beside the operation ratio, one panel per group.

    Returns:
        False, with nothing written, where there is no ratio to draw or no matplotlib.
    """
    rows = [row for row in report.rows if isinstance(row.get("faster"), int | float)]
    if not rows:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    panels: dict[tuple, list[dict]] = {}
    for row in rows:
        panels.setdefault(tuple(row.get(name) for name in report.groups), []).append(row)
    heights = [len(panel) for panel in panels.values()]
    figure = Figure(figsize=(7, 0.8 + 0.6 * len(heights) + 0.34 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (group, panel) in zip(axes, panels.items(), strict=True):
        places = range(len(panel))
        axis.barh([p + 0.2 for p in places], [r.get("fewer ops") or 0 for r in panel], 0.36, color="0.75", label="ops")
        axis.barh([p - 0.2 for p in places], [r["faster"] for r in panel], 0.36, color="tab:blue", label="time")
        axis.axvline(1, color="k", lw=0.8)
        name_of = next(iter(panel[0]))
        axis.set_yticks(list(places), [str(row.get("model", row[name_of])) for row in panel])
        axis.invert_yaxis()
        title = ", ".join(f"{name} {value}" for name, value in zip(report.groups, group, strict=True))
        axis.set_title(title or report.title, fontsize=9, loc="left")
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("times the baseline: saved time (blue), saved operations (grey)")
    figure.suptitle(report.title, fontsize=10)
    with whole(path) as partial:
        figure.savefig(partial, dpi=120)
    return True


def format_value(value: object) -> str:
    """Three significant digits, or all digits before the point; a dash for what was not measured."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if not isfinite(value):
            return str(value)
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def settings_line(settings: dict) -> str:
    """The settings as one line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def environment(device: str = "cpu") -> dict:
    """What the figures depend on: processor, threads and versions."""
    import timm

    if device.startswith("cuda"):
        where = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    else:
        where = {"device": _cpu_name(), "threads": torch.get_num_threads()}
    return where | {"torch": str(torch.__version__), "timm": timm.__version__}


def _cpu_name() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} ({capability})"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({capability})"
