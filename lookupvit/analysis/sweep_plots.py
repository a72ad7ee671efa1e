"""Accuracy against cost, drawn for a column of a paper (3.4 inches)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, log10
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from lookupvit.analysis.pareto import pareto_front
from lookupvit.analysis.plots import COLOURS
from lookupvit.writing import whole

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH, _HEIGHT = 3.4, 2.9  # inches
_FONT = {"font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7}
_LABEL = 6.5  # points
_FRONT = "0.84"
# Where a label may stand relative to its point, best first: (dx, dy) in label sizes.
_PLACES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        cost: Cost in the unit of the axis.
        accuracy: Percent.
        name: Text beside it, such as "3x3"; empty for none.
        error: Half-length of its error bar, in points.
    """

    cost: float
    accuracy: float
    name: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that a line joins.

    Attributes:
        label: In the legend; series of one label share colour and marker.
        points: The points, in any order.
        curve: A dashed curve with dots instead of markers, for what has a dial rather than sizes (a cascade).
    """

    label: str
    points: tuple[Point, ...]
    curve: bool = False


def macs_unit(macs: Sequence[float]) -> tuple[float, str]:
    """Divisor and name of the unit in which multiply-adds are best read: GMACs, or MMACs below 0.1 GMACs."""
    return (1e9, "GMACs") if max(macs) >= 1e8 else (1e6, "MMACs")


def plot_accuracy(
    series: Sequence[Series], stem: str | Path, xlabel: str, ylabel: str = "top-1 accuracy (%)", front: bool = True
) -> list[Path]:
    """Accuracy over cost on a logarithmic axis, with the sizes written beside their points.

    Args:
        series: What to draw; at least one point in all.
        stem: Files to write, without an ending.
        xlabel: With the unit.
        ylabel: With the unit.
        front: Mark the Pareto front of all points (those of curves left out).

    Returns:
        The files: a PNG and an SVG.

    Raises:
        ValueError: If there is nothing to draw, or a cost is not positive.
    """
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError("there are no points to plot: sweep at least one size")
    if min(point.cost for point in points) <= 0:
        raise ValueError("a logarithmic axis needs positive costs")
    with matplotlib.rc_context({**_FONT, "svg.hashsalt": "lookupvit"}):  # the same figures make the same file
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        handles = _draw(axes, series, front)
        _log_axis(axes, [point.cost for point in points])
        low = min(point.accuracy - (point.error or 0) for point in points)
        high = max(point.accuracy + (point.error or 0) for point in points)
        margin = max(0.14 * (high - low), 0.5)
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(low - margin, high + margin))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, handlelength=1.8)
        figure.draw_without_rendering()  # settles the layout, which the labels are placed by
        _label_points(axes, series)
        stem = Path(stem)
        paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
        for path, options in zip(paths, ({"dpi": 200}, {"metadata": {"Date": None}}), strict=True):
            with whole(path) as partial:
                figure.savefig(partial, **options)
    return paths


def _draw(axes: Axes, series: Sequence[Series], front: bool) -> list[Line2D]:
    """The lines, the error bars and the front; returns what the legend shows."""
    handles: dict[str, Line2D] = {}
    labels = list(dict.fromkeys(one.label for one in series if not one.curve))
    if front:
        points = [point for one in series if not one.curve for point in one.points]
        best = [points[i] for i in pareto_front([p.cost for p in points], [p.accuracy for p in points])]
        costs, accuracies = [p.cost for p in best], [p.accuracy for p in best]
        axes.plot(costs, accuracies, color=_FRONT, linewidth=4, solid_capstyle="round", zorder=1)
        axes.plot(costs, accuracies, "o", color=_FRONT, markersize=9, markeredgewidth=0, zorder=1)
        handles["Pareto front"] = Line2D([], [], color=_FRONT, linewidth=4, solid_capstyle="round")
    for one in series:
        own = labels.index(one.label) if one.label in labels else len(labels)
        colour, marker = COLOURS[own % len(COLOURS)], MARKERS[own % len(MARKERS)]
        points = sorted(one.points, key=lambda point: point.cost)
        costs, accuracies = [p.cost for p in points], [p.accuracy for p in points]
        if one.curve:
            (line,) = axes.plot(costs, accuracies, ".--", color=colour, linewidth=1, markersize=3.5, zorder=2)
            handles[f"{one.label}, cascade"] = line
            continue
        errors = [p.error or 0 for p in points] if any(p.error for p in points) else None
        (line, *_) = axes.errorbar(
            costs,
            accuracies,
            yerr=errors,
            fmt=f"{marker}-",
            color=colour,
            linewidth=1,
            markersize=4.5,
            capsize=2,
            elinewidth=0.8,
            zorder=3,
        )
        handles.setdefault(one.label, line)
    for label, handle in handles.items():
        handle.set_label(label)
    front_last = sorted(handles, key=lambda label: label == "Pareto front")
    return [handles[label] for label in front_last]


def _log_axis(axes: Axes, costs: list[float]) -> None:
    """A logarithmic x axis with plain numbers, also where it spans less than a decade."""
    low, high = min(costs), max(costs)
    pad = max((high / low) ** 0.1, 1.12)
    axes.set_xscale("log")
    axes.set_xlim(low / pad, high * pad)
    decades = log10(high * pad * pad / low)
    subs = (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 6, 8) if decades > 0.35 else tuple(range(1, 10))
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_points(axes: Axes, series: Sequence[Series]) -> None:
    """Writes each name where it covers no point, line or other name; one that has no room is left out."""
    scale = axes.figure.dpi / 72  # pixels per point
    taken = []
    for one in series:
        places = axes.transData.transform(sorted((point.cost, point.accuracy) for point in one.points))
        for x, y in places:
            taken.append(Bbox.from_bounds(x - 3 * scale, y - 3 * scale, 6 * scale, 6 * scale))
        for point in (point for point in one.points if point.error):
            bar = [(point.cost, point.accuracy + sign * point.error) for sign in (-1, 1)]
            taken.append(Bbox(axes.transData.transform(bar)).padded(2 * scale))
        for start, end in pairwise(places):
            steps = int(hypot(*(end - start)) / (2 * scale)) + 1  # a dot every two points stands for the line
            taken += [Bbox.from_bounds(*(start + (end - start) * i / steps), 0.5, 0.5) for i in range(steps)]
    frame = axes.get_window_extent()
    for point in (point for one in series if not one.curve for point in one.points if point.name):
        x, y = axes.transData.transform((point.cost, point.accuracy))
        name = point.name.replace("x", "\u00d7")
        text = axes.annotate(
            name,
            (point.cost, point.accuracy),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LABEL,
        )
        width, height = text.get_window_extent().size
        for right, up in _PLACES:
            dx, dy = right * (width / 2 + 5.5 * scale), up * (height / 2 + 5 * scale)
            box = Bbox.from_bounds(x + dx - width / 2, y + dy - height / 2, width, height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                text.xyann = (dx / scale, dy / scale)
                break
        else:
            text.remove()
