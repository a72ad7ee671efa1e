"""Attention drawn over the images and clips that it was computed from.

Letters: (Y, X) pixels, T frames, M compressed tokens, (h, w) lookup grid, (t, h, w) of a clip.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lookupvit.analysis.plots import COLOURS
from lookupvit.writing import whole

_FONT = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7}
_SMALLEST = 128  # pixels: smaller images are enlarged for a picture, each pixel a square
_STRONGEST = 0.8  # opacity of the largest weight
_LEAST = 4.0  # times even attention, the least end of the scale of gather maps
_BAR = 0.75  # inches that the colour bar takes


def overlay(
    image: Tensor, weights: Tensor | None = None, largest: float | None = None, smallest: float = 0.0
) -> np.ndarray:
    """An image under a heat map.

    Args:
        image: `(3, Y, X)` in [0, 1].
        weights: `(h, w)`, not negative; None draws the image alone.
        largest: The weight that gets the strongest colour; the largest of `weights` by default.
        smallest: The weight up to which there is no colour.

    Returns:
        `(Y', X', 3)` in [0, 1], Y' and X' whole multiples of Y and X.
    """
    times = -(-_SMALLEST // min(image.shape[1:]))  # rounded up
    image = image.float().cpu().repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    pixels = image.permute(1, 2, 0).numpy().clip(0, 1)  # (3, Y', X') -> (Y', X', 3)
    if weights is None:
        return pixels
    largest = float(weights.max()) if largest is None else largest
    weights = ((weights.float().cpu() - smallest) / max(largest - smallest, 1e-12)).clamp(0, 1)
    weights = weights[None, None]  # (h, w) -> (1, 1, h, w)
    heat = F.interpolate(weights, size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0].numpy()
    opacity = (_STRONGEST * heat)[..., None]
    # the image a little darker, so that the map stands out where it is bright
    return 0.8 * pixels * (1 - opacity) + matplotlib.colormaps["inferno"](heat)[..., :3] * opacity


def plot_gather(image: Tensor, maps: Tensor, size: tuple[int, int], title: str, path: str | Path) -> Path:
    """What each compressed token gathers, the tokens laid out as their grid, all on one scale, which a bar shows.

    The scale is in multiples of even attention, 1 / (h w) for each place. Colour begins there and is strongest at the
    largest weight of all tokens, or at four times even attention if none is larger: attention that is even but for
    noise stays without colour, where a scale of each token's own would show peaks.

    Args:
        image: `(3, Y, X)` in [0, 1].
        maps: `(M, h, w)`.
        size: Compressed grid (h', w'), M = h' w'.
        title: Line above.
        path: Picture to write.
    """
    rows, columns = size
    maps = maps.float() * maps[0].numel()  # in multiples of even attention
    largest = max(_LEAST, float(maps.max()))
    with matplotlib.rc_context(_FONT):
        wide = max(2.6, min(6.5, 1.3 * columns))
        figure = Figure(figsize=(wide + _BAR, wide * rows / columns + 0.25))
        figure.suptitle(title, fontsize=8, y=0.99)
        grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
        top, right = 1 - 0.22 / figure.get_figheight(), 0.99 - _BAR / figure.get_figwidth()
        figure.subplots_adjust(left=0.01, right=right, bottom=0.01, top=top)
        for axes, weights in zip(grid.flat, maps, strict=True):
            axes.imshow(overlay(image, weights, largest, smallest=1.0))
            axes.set_axis_off()
        bar = figure.add_axes((right + 0.02, 0.05, 0.02, top - 0.1))
        colours = ScalarMappable(Normalize(1, largest), "inferno")
        figure.colorbar(colours, bar, label="weight / even attention").ax.tick_params(labelsize=7)
        return _save(figure, path)


def plot_rollout(images: list[Tensor], columns: dict[str, list[Tensor]], path: str | Path) -> Path:
    """Images, and beside each where its prediction's tokens came from.

    Args:
        images: `(3, Y, X)` in [0, 1] each.
        columns: One `(h, w)` per image, by the title of the column.
        path: Picture to write.
    """
    with matplotlib.rc_context(_FONT):
        wide = 1 + len(columns)
        figure = Figure(figsize=(1.4 * wide, 1.4 * len(images) + 0.25), layout="constrained")
        grid = figure.subplots(len(images), wide, squeeze=False)
        for row, image in enumerate(images):
            drawn = [overlay(image), *(overlay(image, maps[row]) for maps in columns.values())]
            for axes, picture in zip(grid[row], drawn, strict=True):
                axes.imshow(picture)
                axes.set_axis_off()
        for axes, name in zip(grid[0], ["input", *columns], strict=True):
            axes.set_title(name.replace(", ", "\n"))
        return _save(figure, path)


def plot_spread(curves: dict[str, list[tuple[float, float]]], path: str | Path) -> Path:
    """Entropy and diversity by layer.

    Args:
        curves: (entropy, diversity) of each layer, by label.
        path: Picture to write.
    """
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(6.5, 2.4), layout="constrained")
        both = figure.subplots(1, 2)
        names = {"entropy / log N": "0 one place, 1 everywhere alike", "diversity": "0 all tokens alike, 1 no overlap"}
        for place, (axes, (name, meaning)) in enumerate(zip(both, names.items(), strict=True)):
            for colour, (label, layers) in zip(COLOURS, curves.items(), strict=False):
                axes.plot(
                    range(1, len(layers) + 1), [layer[place] for layer in layers], "o-", c=colour, label=label, ms=3
                )
            axes.set(xlabel="block", ylabel=name, ylim=(0, 1))
            axes.set_title(meaning, fontsize="small")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        both[0].legend(frameon=False)
        return _save(figure, path)


def animate(clip: Tensor, maps: Tensor, path: str | Path, fps: int = 8) -> Path:
    """A clip beside the same under its heat map, as an animated GIF.

    Args:
        clip: `(3, T, Y, X)` in [0, 1].
        maps: `(t, h, w)`, relative to the largest weight of all frames.
        path: GIF to write.
        fps: Frames per second.
    """
    size = (clip.shape[1], *maps.shape[1:])
    by_frame = F.interpolate(maps.float()[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
    frames = []
    for frame, weights in zip(clip.unbind(1), by_frame, strict=True):
        pair = np.concatenate([overlay(frame), overlay(frame, weights, float(by_frame.max()))], axis=1)
        frames.append(Image.fromarray((255 * pair.clip(0, 1)).astype(np.uint8)))
    with whole(path) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return Path(path)


def _save(figure: Figure, path: str | Path) -> Path:
    with whole(path) as partial:
        figure.savefig(partial, dpi=110)
    return Path(path)
