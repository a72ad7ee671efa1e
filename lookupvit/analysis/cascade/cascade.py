"""A cascade of compressed sizes: few tokens for every image, more only for those that it is not yet sure of.

The smallest size runs on all images; those whose confidence lies below a threshold run again at the next size, and so
on. The lookup embedding does not depend on the compressed size and is computed once. One set of weights serves every
stage, so a cascade is nothing but sizes and thresholds; `lookupvit.analysis.cascade.calibration` chooses them.

Letters: n images, B batch, C classes. A size is a compressed grid such as (3, 3).
"""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookupvit.analysis.cascade.confidence import ALWAYS, CONFIDENCES, confidence, stage_answers
from lookupvit.analysis.cascade.file import checked_values
from lookupvit.analysis.cost import embedding_macs, model_macs
from lookupvit.checks import check_choice
from lookupvit.grid import Size, parse_size, size_name
from lookupvit.model.lookupvit import LookupViT
from lookupvit.trust import read_json
from lookupvit.writing import write_text


@dataclass(frozen=True)
class CascadeCosts:
    """The cost per image of each stage of a cascade, in one unit (multiply-adds, or milliseconds).

    Attributes:
        shared: Cost of the embedding, paid once whatever the sizes.
        stages: Further cost of each size.
    """

    shared: float
    stages: dict[Size, float]

    def fixed(self, size: Size) -> float:
        """Cost per image at `size` alone."""
        return self.shared + self.stages[size]


def cascade_costs(
    model: LookupViT,
    sizes: list[Size],
    img_size: int | tuple[int, int] | None = None,
    head: str | None = None,
) -> CascadeCosts:
    """Multiply-adds of the embedding and of each size's stage, in closed form.

    Args:
        model: The model.
        sizes: Compressed grids.
        img_size: Pixels; the model's own by default.
        head: Head that is read; the model's own by default.

    Raises:
        ValueError: For a size that does not fit, or a model without compressed tokens.
    """
    _check_model(model)
    shared = embedding_macs(model, img_size)
    totals = {tuple(size): sum(model_macs(model, img_size, size, head=head).values()) for size in sizes}
    return CascadeCosts(float(shared), {size: float(total - shared) for size, total in totals.items()})


class CascadeResult(NamedTuple):
    """The accuracy and the cost of a cascade.

    Attributes:
        accuracy: Share of images classified correctly, in [0, 1].
        cost: Average cost per image.
        shares: Share of the images that end at each stage.
    """

    accuracy: float
    cost: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Cascade:
    """Sizes and thresholds.

    Attributes:
        sizes: Compressed grids in the order in which they run, cheapest first.
        thresholds: One fewer: after a stage, an image goes on where its confidence lies below.
        confidence: "probability" (of the likeliest class), "margin" (between the two likeliest) or "entropy" (1 minus
            the entropy over its maximum log C); all in [0, 1].
        temperatures: The logits of each size are divided by its temperature first; all 1 by default.
        average: Answer with the mean of the logits of all stages so far, in place of the last one's.
        model: `lookupvit.checkpoints.fingerprint` of the weights that the thresholds were chosen with; None: not known.
        img_size: Pixels (height, width) of the images that they were chosen on; None: not known.

    Raises:
        ValueError: Where these do not fit together.
    """

    sizes: tuple[Size, ...]
    thresholds: tuple[float, ...]
    confidence: str = "probability"
    temperatures: tuple[float, ...] = ()
    average: bool = False
    model: str | None = None
    img_size: tuple[int, int] | None = None

    def __post_init__(self):
        freeze = object.__setattr__  # lists, as JSON has them, become tuples
        freeze(self, "sizes", tuple(tuple(size) for size in self.sizes))
        freeze(self, "thresholds", tuple(float(t) for t in self.thresholds))
        freeze(self, "temperatures", tuple(float(t) for t in self.temperatures) or (1.0,) * len(self.sizes))
        freeze(self, "img_size", None if self.img_size is None else tuple(self.img_size))
        check_choice("confidence", self.confidence, CONFIDENCES)
        stages = len(self.sizes)
        if stages < 1 or len(set(self.sizes)) < stages:
            raise ValueError(f"a cascade needs one or more different sizes, got {_names(self.sizes) or 'none'}")
        for name, values, expected in (
            ("thresholds", self.thresholds, stages - 1),
            ("temperatures", self.temperatures, stages),
        ):
            if len(values) != expected:
                raise ValueError(f"a cascade of {stages} sizes has {expected} {name}, got {len(values)}")
        if not all(isfinite(t) for t in self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)} are not all finite: give numbers from 0 to {ALWAYS}")
        if not all(isfinite(t) and t > 0 for t in self.temperatures):
            raise ValueError(f"temperatures {list(self.temperatures)} are not all positive and finite")

    def decide(self, logits_by_size: dict[Size, Tensor]) -> tuple[Tensor, Tensor]:
        """What the cascade would answer, from the logits of every size.

        Args:
            logits_by_size: `(n, C)` of at least this cascade's sizes, over the same images.

        Returns:
            Logits `(n, C)` of the stage at which each image ends, after temperature and averaging, and the stage
            `(n,)`, counted from 0. Both in float64 on the CPU, for logits on any device.
        """
        logits = _complete(logits_by_size, self.sizes)
        stage = torch.zeros(len(logits[0]), dtype=torch.int64)
        answers = stage_answers(logits, self.temperatures, self.average)
        result = answers[0].clone()
        for i, threshold in enumerate(self.thresholds):
            go_on = (stage == i) & (confidence(answers[i], self.confidence) < threshold)
            stage[go_on] = i + 1
            result[go_on] = answers[i + 1][go_on]
        return result, stage

    def evaluate(self, logits_by_size: dict[Size, Tensor], targets: Tensor, costs: CascadeCosts) -> CascadeResult:
        """Accuracy and average cost on images whose logits at every size are known.

        Args:
            logits_by_size: See `decide`.
            targets: Classes `(n,)`.
            costs: Costs of at least this cascade's sizes.
        """
        logits, stage = self.decide(logits_by_size)
        shares = torch.bincount(stage, minlength=len(self.sizes)).double() / len(stage)
        reached = shares.flip(0).cumsum(0).flip(0)  # share of the images that run each stage
        cost = costs.shared + sum(
            share * costs.stages[s] for share, s in zip(reached.tolist(), self.sizes, strict=True)
        )
        accuracy = (logits.argmax(dim=1) == targets.cpu()).double().mean().item()
        return CascadeResult(accuracy, cost, tuple(shares.tolist()))

    @torch.inference_mode()
    def predict(self, model: nn.Module, images: Tensor, head: str | None = None) -> tuple[Tensor, Tensor]:
        """Runs the cascade: one embedding, and each further size on the remaining images only.

        Args:
            model: A model with compressed tokens, in evaluation mode.
            images: `(B, 3, height, width)`.
            head: Head that is read; the model's own by default.

        Returns:
            Logits `(B, C)` in float32, after temperature and averaging, and the stage `(B,)` at which each image ended,
            both on the images' device.

        Raises:
            ValueError: For a model without compressed tokens, or a size that does not fit the images.
        """
        _check_model(model)
        lookup, grid = model.embed_images(images)
        remaining = torch.arange(len(images), device=images.device)
        stage = torch.zeros_like(remaining)
        result: Tensor | None = None
        total: Tensor | float = 0.0
        for i, (size, temperature) in enumerate(zip(self.sizes, self.temperatures, strict=True)):
            tokens = model.forward_tokens(lookup, grid, size, head)
            answer = model.forward_head(tokens).float() / temperature
            if self.average:
                total = total + answer
                answer = total / (i + 1)
            if result is None:
                result = answer.clone()
            else:
                result[remaining] = answer
                stage[remaining] = i
            if i == len(self.thresholds):
                break
            go_on = confidence(answer, self.confidence).to(images.device) < self.thresholds[i]
            remaining, lookup = remaining[go_on], lookup[go_on]
            if self.average:
                total = total[go_on]
            if not len(remaining):
                break
        return result, stage

    def as_dict(self) -> dict:
        """Plain data, sizes as text such as "3x3"; `from_dict` reads it back."""
        return {
            "sizes": [size_name(size) for size in self.sizes],
            "thresholds": list(self.thresholds),
            "confidence": self.confidence,
            "temperatures": list(self.temperatures),
            "average": self.average,
            **({} if self.model is None else {"model": self.model}),
            **({} if self.img_size is None else {"img_size": list(self.img_size)}),
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Cascade":
        """The cascade that `as_dict` described; a key "about" is passed over.

        Raises:
            ValueError: For missing, unknown or ill-typed entries, in one line.
        """
        values = checked_values(values)
        return cls(**{**values, "sizes": tuple(parse_size(size) for size in values["sizes"])})

    def save(self, path: str | Path, about: dict | None = None) -> Path:
        """Writes JSON.

        Args:
            path: File; its folder is made where it is missing.
            about: Plain data on where the thresholds come from, for the reader.

        Returns:
            `path`.
        """
        values = self.as_dict() | ({"about": about} if about else {})
        return write_text(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Cascade":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no cascade, in one line that names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"cascade {path} does not exist: give a file that Cascade.save or the sweep wrote")
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors too
            raise ValueError(f"cascade {path} cannot be read: {error}") from error


def _complete(logits_by_size: dict[Size, Tensor], sizes: tuple[Size, ...]) -> list[Tensor]:
    if missing := [size for size in sizes if size not in logits_by_size]:
        raise ValueError(f"no logits for size {_names(missing)}: there are {_names(logits_by_size)}")
    logits = [logits_by_size[size].detach().cpu().double() for size in sizes]
    if len({value.shape for value in logits}) > 1 or logits[0].ndim != 2 or not len(logits[0]):
        shapes = ", ".join(str(tuple(value.shape)) for value in logits)
        raise ValueError(f"logits of shapes {shapes}: give (n, C) of the same one or more images at every size")
    return logits


def _check_model(model: nn.Module) -> None:
    if getattr(model, "compressed_size", None) is None:
        raise ValueError(
            f"a cascade needs a model with compressed tokens, not a {type(model).__name__}: use a LookupViT"
        )


def _names(sizes) -> str:
    return ", ".join(size_name(size) for size in sizes)
