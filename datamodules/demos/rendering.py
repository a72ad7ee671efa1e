"""What the rendered data sets share: outlines drawn smoothly, and folders that are rendered once and whole."""

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw
from rich.progress import track

from datamodules.loading.untrusted import check_may_write

OVERSAMPLE = 4  # outlines are drawn this much larger and averaged down


def draw_outline(side: int, polygons: Iterable[np.ndarray], fills: Iterable[int] = repeat(255)) -> Image.Image:
    """Polygons in white on a black square.

    Args:
        side: Pixels of the square.
        polygons: Corners `(n, 2)` of each, (x, y) in pixels.
        fills: 255 for a polygon that is filled, 0 for a hole in those before it.
    """
    canvas = Image.new("L", (side, side))
    for points, fill in zip(polygons, fills, strict=False):
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=fill)
    return canvas


def coverage(canvas: Image.Image) -> np.ndarray:
    """How much of each pixel is white, `(S, S, 1)` in 0..1, from a canvas of `S * OVERSAMPLE` pixels a side."""
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32)[..., None] / 255


def samples_of(train_per_class: int, val_per_class: int, classes: int) -> list[tuple[int, int, int]]:
    """`(split, class, number)` of every sample: 0 is training and 1 validation."""
    return [
        (split, label, number)
        for split, count in enumerate((train_per_class, val_per_class))
        for label in range(classes)
        for number in range(count)
    ]


def progress(jobs: Iterable[Any], what: str, root: Path) -> Iterable[Any]:
    """The jobs, with a progress bar that goes away at their end."""
    return track(list(jobs), description=f"rendering {what} into {root}", transient=True)


def render_once(root: Path, marker: str, arguments: dict[str, Any], what: str, render: Callable[[Path], None]) -> bool:
    """Renders a data set into a folder, unless the same one lies there; an interrupted run leaves no part of one.

    Of two processes one renders and the other waits.

    Args:
        root: Folder to make.
        marker: Name of the file in it that keeps the arguments.
        arguments: Everything that the data set depends on.
        what: What the data set is called in an error.
        render: Writes it into an empty folder.

    Returns:
        True if it was rendered, False if it was there.

    Raises:
        ValueError: The folder holds something else.
    """
    if (root / marker).is_file():  # perhaps on a disk that cannot be written to
        return _render_once(root, marker, arguments, what, render)
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = root.with_name(f".{root.name}.lock")
    with FileLock(lock):  # of two processes the second finds what the first rendered
        rendered = _render_once(root, marker, arguments, what, render)
        with suppress(OSError):
            lock.unlink()
    return rendered


def _render_once(root: Path, marker: str, arguments: dict[str, Any], what: str, render: Callable[[Path], None]) -> bool:
    if (root / marker).is_file():
        rendered = json.loads((root / marker).read_text())
        if rendered == arguments:
            return False
        raise ValueError(
            f"the {what} in {str(root)!r} {'were' if what.endswith('s') else 'was'} rendered with {rendered}, asked "
            f"for {arguments}; remove that folder or set another data.root"
        )
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{str(root)!r} is not empty and holds no {what}; set data.root to a new folder")
    staging = root.with_name(root.name + ".rendering")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    render(staging)
    (staging / marker).write_text(json.dumps(arguments))
    if root.exists():
        root.rmdir()
    staging.rename(root)
    return True


class Rendered:
    """A DataModule whose data are rendered when they are first needed; for multiple inheritance.

    Attributes:
        marker: Name of the file that a rendered folder has.
        render: Makes the data in a folder, given the arguments of `render_arguments`.
    """

    marker: str
    render: Callable[..., bool]
    render_arguments: dict[str, Any]

    def prepare_data(self) -> None:
        """Render the data, unless they are there, or prediction asks only for files of the user."""
        if self.trainer is not None and self.trainer.state.fn == "predict":
            return
        if not (self.root / self.marker).is_file():
            check_may_write(self, "root")
        type(self).render(self.root, **self.render_arguments)
