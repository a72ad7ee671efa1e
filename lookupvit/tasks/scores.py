"""Losses and accuracies of an evaluation, at every compressed size and of every head; and of several test sets."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from datamodules.robustness.sets import TestSet
from lookupvit.grid import size_name
from lookupvit.metrics.robustness import RobustnessScores
from lookupvit.tasks.losses import mean_logits
from lookupvit.tasks.sampling import Size

STAGES = ("val", "test")
MAIN = "main"  # the key of the main size, whose metrics have no size in their names (val/top1)
PLAIN = "vit"  # the key of a model without compressed tokens, in the results of several test sets


class Scores(nn.Module):
    """The metrics of one stage.

    Args:
        stage: `"val"` or `"test"`, the beginning of every name.
        main: The size whose metrics have no size in their names, such as `val/top1`; None for a ViT.
        sizes: Sizes that are reported under their own names, such as `val/top1@3x3`.
        heads: Heads that are reported one by one beside their mean; empty for a model with a single head.
        num_classes: Number of classes C.
    """

    def __init__(self, stage: str, main: Size | None, sizes: list[Size], heads: list[str], num_classes: int) -> None:
        super().__init__()
        self.stage, self.main, self.sizes = stage, main, sizes
        keys = [MAIN, *(size_name(size) for size in sizes if size != main)]
        self.accuracies = nn.ModuleDict(
            {
                key: nn.ModuleDict({head: _accuracies(stage, key, head, num_classes) for head in ("mean", *heads)})
                for key in keys
            }
        )
        self.losses = nn.ModuleDict({key: MeanMetric() for key in keys})

    @property
    def evaluated(self) -> list[Size | None]:
        """Every size that an evaluation runs at, the main one first."""
        return [self.main, *(size for size in self.sizes if size != self.main)]

    def update(
        self, size: Size | None, logits: dict[str, torch.Tensor], losses: list[torch.Tensor], targets: torch.Tensor
    ) -> None:
        """Adds a batch.

        Args:
            size: The compressed size that it was run at.
            logits: Logits `(B, C)` by head.
            losses: One scalar for each head.
            targets: Classes `(B,)`.
        """
        key = self._key(size)
        self.losses[key].update(torch.stack(losses).mean(), weight=len(targets))
        mean = mean_logits(logits)
        for head, metric in self.accuracies[key].items():
            metric.update(mean if head == "mean" else logits[head], targets)

    def log(self, task: LightningModule, batch_size: int) -> None:
        """Hands the metrics to Lightning, which computes and resets them at the end of the epoch."""
        for size in self.evaluated:
            key = self._key(size)
            task.log(f"{self.stage}/loss{_at(key)}", self.losses[key], batch_size=batch_size)
            for head, metric in self.accuracies[key].items():
                task.log_dict(metric, prog_bar=key == MAIN and head == "mean", batch_size=batch_size)
            if key == MAIN and size in self.sizes:  # also under the size's own name, for tables and plots
                named = self.accuracies[key]["mean"].items(keep_base=True)
                task.log_dict({f"{name}@{size_name(size)}": metric for name, metric in named}, batch_size=batch_size)

    def _key(self, size: Size | None) -> str:
        return MAIN if size == self.main else size_name(size)


class SetScores(nn.Module):
    """A `RobustnessScores` for each compressed size.

    Args:
        sets: What each number in a batch asks for.
        sizes: The compressed sizes, the main one first; `(None,)` for a ViT.
    """

    def __init__(self, sets: Sequence[TestSet], sizes: Sequence[Size | None]) -> None:
        super().__init__()
        self.by_size = nn.ModuleDict({_set_key(size): RobustnessScores(sets) for size in sizes})

    def update(
        self, logits: dict[Size | None, dict[str, torch.Tensor]], targets: torch.Tensor, sets: torch.Tensor
    ) -> None:
        """Adds the first B samples of a batch.

        Args:
            logits: Logits `(n, C)` by size and head, with n at least B.
            targets: Classes `(B,)`.
            sets: The number of each sample's test set, `(B,)`.
        """
        for size, by_head in logits.items():
            self.by_size[_set_key(size)].update(mean_logits(by_head)[: len(targets)], targets, sets)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Rows and summary by size, see `RobustnessScores`."""
        return {name: scores.compute() for name, scores in self.by_size.items()}

    @staticmethod
    def summary(results: dict[str, dict[str, Any]]) -> dict[str, float]:
        """The values to log: `test/cifar10-c/mean_error`, with `@3x3` after it for all sizes but the first."""
        return {
            f"test/{measure}" + ("" if place == 0 else f"@{size}"): value
            for place, (size, result) in enumerate(results.items())
            for measure, value in result["summary"].items()
        }


def new_samples(loader: Any, batch_idx: int, batch: int, rank: int) -> int:
    """Number of a batch's samples that a distributed sampler did not repeat to fill up its last round."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    # Rank r holds the samples r, r + R, r + 2 R, ...; numbers from len(dataset) on are repeats.
    own = len(range(rank, len(sampler.dataset), sampler.num_replicas))
    return max(0, min(batch, own - batch_idx * loader.batch_size))


def _set_key(size: Size | None) -> str:
    return PLAIN if size is None else size_name(size)


def _at(key: str) -> str:
    return "" if key == MAIN else f"@{key}"


def _accuracies(stage: str, key: str, head: str, num_classes: int) -> MetricCollection:
    suffix = ("" if head == "mean" else f"_{head}") + _at(key)
    return MetricCollection(
        {
            f"{stage}/top{k}{suffix}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for k in (1, 5)
        },
        compute_groups=False,
    )
