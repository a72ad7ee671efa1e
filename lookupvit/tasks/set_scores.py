"""Scores of a test over several sets at once, at every compressed size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from datamodules.robustness.sets import TestSet
from lookupvit.grid import size_name
from lookupvit.metrics.robustness import RobustnessScores
from lookupvit.tasks.sampling import Size
from lookupvit.tasks.scores import mean_logits

PLAIN = "vit"  # the column of a model without compressed tokens


class SetScores(nn.Module):
    """A `RobustnessScores` a compressed size.

    Args:
        sets: what each number in a batch asks for.
        sizes: the compressed sizes, the main one first; (None,) of a ViT.
    """

    def __init__(self, sets: Sequence[TestSet], sizes: Sequence[Size | None]) -> None:
        super().__init__()
        self.by_size = nn.ModuleDict({_name(size): RobustnessScores(sets) for size in sizes})

    def update(
        self, by_size: dict[Size | None, dict[str, torch.Tensor]], targets: torch.Tensor, places: torch.Tensor
    ) -> None:
        """Adds logits `(n, C)`, n at least B, by size and head, of which the first B have targets and places `(B,)`."""
        for size, by_head in by_size.items():
            self.by_size[_name(size)].update(mean_logits(by_head)[: len(targets)], targets, places)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Rows and summary by size, see `RobustnessScores`."""
        return {name: scores.compute() for name, scores in self.by_size.items()}


def named(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The summaries under names to log: `test/cifar10-c/mean_error`, and with `@3x3` for all sizes but the first."""
    return {
        f"test/{measure}" + ("" if i == 0 else f"@{size}"): value
        for i, (size, result) in enumerate(results.items())
        for measure, value in result["summary"].items()
    }


def _name(size: Size | None) -> str:
    return PLAIN if size is None else size_name(size)
