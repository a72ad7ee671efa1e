"""One picture through one model at chosen budgets: the answer, its cost, where the model looks, the cascade's way.

Letters: C classes, M compressed tokens, (Y, X) pixels, (h, w) lookup grid.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lookupvit.analysis.attention_maps import attention_of, rollout
from lookupvit.analysis.attention_plots import plot_gather, plot_rollout
from lookupvit.analysis.budget import default_candidates
from lookupvit.analysis.cascade.cascade import Cascade, cascade_costs
from lookupvit.analysis.cascade.confidence import confidence, stage_answers
from lookupvit.analysis.cost import model_macs, vit_macs
from lookupvit.analysis.plots import COLOURS
from lookupvit.grid import Size, grid_of, size_name


class Answer(NamedTuple):
    """What a model says of a picture at one compressed size.

    Attributes:
        scores: Probability of each class, by name, largest first.
        gmacs: Multiply-adds of the call in 1e9.
    """

    scores: dict[str, float]
    gmacs: float


class Stage(NamedTuple):
    """A stage that a cascade ran.

    Attributes:
        size: Its compressed size.
        name: The likeliest class there.
        confidence: How sure the model was, in [0, 1].
        threshold: The picture goes on if the confidence lies below; None at the last size.
    """

    size: Size
    name: str
    confidence: float
    threshold: float | None


@dataclass
class Explorer:
    """A classifier of images whose compressed size can be chosen.

    Attributes:
        model: `LookupViT` or `ViT`, in evaluation mode on the CPU.
        label: Its name on the page.
        class_names: Name of each class.
        trained_sizes: Compressed sizes that it was trained at; None if that is not known.
        head: Head that answers; None for the model's own choice.
        sigmoid: Whether it was trained with the sigmoid loss, so that its probabilities need not add up to one.
        cascade: Sizes and thresholds, if there are any.
    """

    model: nn.Module
    label: str
    class_names: list[str]
    trained_sizes: list[Size] | None = None
    head: str | None = None
    sigmoid: bool = False
    cascade: Cascade | None = None

    @property
    def sizes(self) -> list[Size]:
        """The compressed sizes of the lookup grid's aspect, smallest first; none for a ViT."""
        if self.model.compressed_size is None:
            return []
        return default_candidates(grid_of(self.model.img_size, self.model.patch_size))

    def size_at(self, side: int) -> Size | None:
        """The compressed size whose longer side is `side`, or the largest there is; None for a ViT."""
        return self.sizes[min(max(side, 1), len(self.sizes)) - 1] if self.sizes else None

    @torch.inference_mode()
    def answer(self, image: Tensor, size: Size | None) -> Answer:
        """Runs the model at one compressed size.

        Args:
            image: `(3, Y, X)`, normalised, of the model's image size.
            size: Compressed size; None for a ViT.
        """
        logits = self._logits(image, size)
        values = logits.sigmoid() if self.sigmoid else logits.softmax(dim=0)
        order = values.argsort(descending=True).tolist()
        macs = vit_macs(self.model) if size is None else model_macs(self.model, compressed_size=size, head=self.head)
        scores = {self.class_names[place]: float(values[place]) for place in order}
        return Answer(scores, sum(macs.values()) / 1e9)

    @torch.inference_mode()
    def cascade_way(self, image: Tensor) -> tuple[list[Stage], float]:
        """The stages that the cascade runs for a picture, and their multiply-adds together in 1e9.

        Raises:
            ValueError: If there is no cascade.
        """
        if self.cascade is None:
            raise ValueError(f"{self.label} has no cascade: lookupvit sweep CHECKPOINT writes one")
        cascade, sizes = self.cascade, self.cascade.sizes
        logits = [self._logits(image, size)[None].cpu().double() for size in sizes]  # each (1, C)
        answers = stage_answers(logits, cascade.temperatures, cascade.average)
        stop = int(cascade.decide(dict(zip(sizes, logits, strict=True)))[1])
        stages = [
            Stage(
                size,
                self.class_names[int(answer.argmax())],
                float(confidence(answer, cascade.confidence)),
                cascade.thresholds[i] if i < len(cascade.thresholds) else None,
            )
            for i, (size, answer) in enumerate(zip(sizes[: stop + 1], answers, strict=False))
        ]
        costs = cascade_costs(self.model, list(sizes), head=self.head)
        return stages, (costs.shared + sum(costs.stages[size] for size in sizes[: stop + 1])) / 1e9

    def picture(self, image: Tensor, pixels: Tensor, size: Size | None, block: int = -1) -> Image.Image:
        """Where the model looks: what each compressed token gathers, or of a ViT the attention roll-out.

        Args:
            image: `(3, Y, X)`, normalised.
            pixels: The same in [0, 1].
            size: Compressed size; None for a ViT.
            block: Index of the block.
        """
        attention = attention_of(self.model, image[None], size)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            if size is None:
                maps = rollout(attention, "lookup").unflatten(1, attention.grid_size)  # (1, N) -> (1, h, w)
                plot_rollout([pixels], {"attention roll-out": list(maps)}, path)
            else:
                gather = attention.blocks[block].gather.mean(dim=1)[0]  # (1, H, M, N) -> (M, N)
                maps = gather.unflatten(1, attention.grid_size)  # (M, N) -> (M, h, w)
                depth = len(attention.blocks)
                title = f"{size_name(size)}, block {range(depth)[block] + 1} of {depth}, mean of heads"
                plot_gather(pixels, maps, attention.compressed_size, title, path)
            return Image.open(io.BytesIO(path.read_bytes()))

    def _logits(self, image: Tensor, size: Size | None) -> Tensor:
        """`(C,)` in float32."""
        return self.model(image[None], size, self.head)[0].float()


def plot_budgets(answers: dict[str, dict[Size | None, Answer]], chosen: list[Size | None]) -> Image.Image:
    """The confidence of each model's answer over its cost, all sizes of a picture.

    Args:
        answers: By the model's name and the compressed size (None for a ViT).
        chosen: The size of each model that the page shows, which is ringed.
    """
    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for (label, by_size), size, colour in zip(answers.items(), chosen, COLOURS * len(answers), strict=False):
        x, y = [a.gmacs for a in by_size.values()], [100 * next(iter(a.scores.values())) for a in by_size.values()]
        axes.plot(x, y, "o-", color=colour, label=label, ms=4, lw=1.2)
        for i, (own, answer) in enumerate(by_size.items()):
            name = next(iter(answer.scores))
            text = name if own is None else f"{size_name(own)} {name}"
            axes.annotate(text, (x[i], y[i]), (4, -9), textcoords="offset points", fontsize=6.5, color=colour)
            if own == size:
                axes.plot(x[i], y[i], "o", ms=10, mfc="none", mec=colour)
    axes.set(xlabel="GMACs per image", ylabel="confidence of its answer, %", ylim=(0, 104))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=130)
        return Image.open(io.BytesIO(buffer.getvalue()))
