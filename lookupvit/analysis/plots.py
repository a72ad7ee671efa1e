"""Pictures of results."""

from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lookupvit.writing import whole

# Okabe and Ito's colours, told apart by everyone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def read_scalars(folder: str | Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of one TensorBoard scalar of a run; two empty lists where it was not logged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return [], []
    scalars = events.Scalars(tag)
    return [s.step for s in scalars], [s.value for s in scalars]


def plot_curves(runs: dict[str, str | Path], path: str | Path, measure: str = "top1", name: str = "top-1") -> Path:
    """Training loss and validation accuracy of several runs over their steps.

    Args:
        runs: TensorBoard folder of each run, by label.
        path: Picture to write (PNG or SVG).
        measure: The accuracy, without `val/`.
        name: Its name on the axis.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, top1 = figure.subplots(1, 2)
    for colour, (label, folder) in zip(COLOURS * len(runs), runs.items(), strict=False):
        steps, values = read_scalars(folder, "train/loss")
        loss.plot(steps, values, color=colour, label=label, linewidth=1.2)
        steps, values = read_scalars(folder, f"val/{measure}")
        top1.plot(steps, [100 * v for v in values], "o-", color=colour, label=label, linewidth=1.5, markersize=4)
    loss.set(xlabel="optimiser step", ylabel="training loss")
    top1.set(xlabel="optimiser step", ylabel=f"validation {name} (%)", ylim=(0, 100))
    for axes in (loss, top1):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    top1.legend(frameon=False, loc="lower right")
    with whole(path) as partial:
        figure.savefig(partial, dpi=150)
    return Path(path)


def plot_differences(points: dict[str, tuple[float, float | None]], label: str, path: str | Path) -> Path:
    """Differences from a baseline, a line each, with their standard deviations where there are several seeds.

    Args:
        points: (difference, deviation or None) by name.
        label: Of the axis.
        path: Picture to write (PNG or SVG).

    Returns:
        `path`.
    """
    figure = Figure(figsize=(5.5, 0.8 + 0.26 * max(len(points), 1)), layout="constrained")
    axes = figure.subplots()
    for place, (difference, deviation) in enumerate(points.values()):
        axes.errorbar(difference, place, xerr=deviation, fmt="o", color=COLOURS[0], markersize=4, capsize=2)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set(xlabel=label, yticks=range(len(points)), yticklabels=list(points))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    with whole(path) as partial:
        figure.savefig(partial, dpi=150)
    return Path(path)
