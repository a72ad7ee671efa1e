"""What several models answer to the same pictures or clips, each marked right or wrong, as one picture.

Letters: (Y, X) pixels, T frames.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lookupvit.writing import whole

_COLOURS = {True: "#1a7f37", False: "#c62828", None: "#222222"}
_MARKS = {True: "✓ ", False: "✗ ", None: ""}
_GREY = "#555555"
_FRAMES = 8  # of a clip, side by side
_LINE = 0.18  # inches
_SMALL = 64  # pixels of a picture that is enlarged


@dataclass(frozen=True)
class Answer:
    """One model's answer to one sample.

    Attributes:
        text: The class, or the caption.
        right: Whether it is right; None where that is not known.
        note: Such as its probability, or why it is wrong.
    """

    text: str
    right: bool | None
    note: str = ""


def plot_answers(
    pictures: Sequence[Tensor], truths: Sequence[str], answers: Mapping[str, Sequence[Answer]], path: str | Path
) -> Path:
    """Pictures or clips; beside each the truth, and what each model answers, marked right or wrong.

    Args:
        pictures: Images `(3, Y, X)` or clips `(3, T, Y, X)`, in [0, 1].
        truths: The right answer of each.
        answers: The answers by model, in the order of the pictures.
        path: Picture to write (PNG), which is returned.
    """
    clips = pictures[0].ndim == 4
    columns, letters = (1, 72) if clips else (2, 42)
    cells = []
    for place, truth in enumerate(truths):
        lines = _lines(f"truth: {truth}", letters, _GREY)
        for name, given in answers.items():
            answer = given[place]
            note = f" ({answer.note})" if answer.note else ""
            lines += _lines(f"{_MARKS[answer.right]}{name}: {answer.text}{note}", letters, _COLOURS[answer.right])
        cells.append(lines)
    rows = -(-len(cells) // columns)
    height = max(0.75, _LINE * max(map(len, cells)) + 0.16)
    figure = Figure(figsize=(10, rows * height), dpi=100)
    widths = (1.0, 1.1) if clips else (1.0, 5.0 / height - 1.0)  # a clip's frames side by side; a square picture
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=widths * columns).flatten()
    for axes in grid:
        axes.axis("off")
    for place, (picture, lines) in enumerate(zip(pictures, cells, strict=True)):
        image, words = grid[2 * place], grid[2 * place + 1]
        how = "nearest" if picture.shape[-2] <= _SMALL else None  # pixels as they are, and a smaller file
        image.imshow(_strip(picture).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation=how)  # (3, Y, X) -> (Y, X, 3)
        for line, (text, colour) in enumerate(lines):
            words.text(0, 1 - line * _LINE / height, text, va="top", fontsize=8.5, color=colour, parse_math=False)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.985, wspace=0.03, hspace=0.08)
    with whole(path) as partial:
        figure.savefig(partial)
    return Path(path)


def _strip(picture: Tensor) -> Tensor:
    """A clip `(3, T, Y, X)` as frames side by side, `(3, Y, n X)`; an image as it is."""
    if picture.ndim == 3:
        return picture
    chosen = torch.linspace(0, picture.shape[1] - 1, min(_FRAMES, picture.shape[1])).round().long()
    return torch.cat([torch.nn.functional.pad(picture[:, t], (0, 1), value=1.0) for t in chosen], dim=2)


def _lines(text: str, width: int, colour: str) -> list[tuple[str, str]]:
    return [(line, colour) for line in textwrap.wrap(text, width, max_lines=3, placeholder=" ...")]
