"""Losses and accuracies of an evaluation, at every compressed size and of every head."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lookupvit.grid import size_name
from lookupvit.tasks.sampling import Size

STAGES = ("val", "test")
_MAIN = "main"  # the key of the size that an unadorned metric such as val/top1 stands for


class Scores(nn.Module):
    """The metrics of one stage.

    Args:
        stage: ``"val"`` or ``"test"``, the beginning of every name.
        main: The size that unadorned names such as ``val/top1`` stand for; None of a ViT.
        sizes: Sizes that are reported under their own names, such as ``val/top1@3x3``.
        heads: Heads that are reported one by one beside their mean; none of a model with a single head.
        num_classes: ``C``.
    """

    def __init__(self, stage: str, main: Size | None, sizes: list[Size], heads: list[str], num_classes: int) -> None:
        super().__init__()
        self.stage, self.main, self.sizes = stage, main, sizes
        keys = [_MAIN, *(size_name(size) for size in sizes if size != main)]
        self.accuracies = nn.ModuleDict(
            {
                key: nn.ModuleDict({head: _accuracies(stage, key, head, num_classes) for head in ("mean", *heads)})
                for key in keys
            }
        )
        self.losses = nn.ModuleDict({key: MeanMetric() for key in keys})

    @property
    def evaluated(self) -> list[Size | None]:
        """Every size that an evaluation runs, the main one first."""
        return [self.main, *(size for size in self.sizes if size != self.main)]

    def update(
        self, size: Size | None, logits: dict[str, torch.Tensor], losses: list[torch.Tensor], targets: torch.Tensor
    ) -> None:
        """Adds a batch.

        Args:
            size: Its compressed size.
            logits: ``(B, C)`` by head.
            losses: Scalars, one a head.
            targets: Classes ``(B,)``.
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
                task.log_dict(metric, prog_bar=key == _MAIN and head == "mean", batch_size=batch_size)
            if key == _MAIN and size in self.sizes:  # once more under its own size, for tables and plots
                named = self.accuracies[key]["mean"].items(keep_base=True)
                task.log_dict({f"{name}@{size_name(size)}": metric for name, metric in named}, batch_size=batch_size)

    def _key(self, size: Size | None) -> str:
        return _MAIN if size == self.main else size_name(size)


def mean_logits(logits: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of the heads' logits ``(B, C)``."""
    return torch.stack(list(logits.values())).mean(dim=0)


def new_samples(loader: Any, batch_idx: int, batch: int, rank: int) -> int:
    """How many of a batch's samples are not repeats that a distributed sampler added to fill up the last round."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    # Rank r holds the samples r, r + R, r + 2 R, ...; those from len(dataset) on are repeats.
    mine = len(range(rank, len(sampler.dataset), sampler.num_replicas))
    return max(0, min(batch, mine - batch_idx * loader.batch_size))


def _at(key: str) -> str:
    return "" if key == _MAIN else f"@{key}"


def _accuracies(stage: str, key: str, head: str, num_classes: int) -> MetricCollection:
    suffix = ("" if head == "mean" else f"_{head}") + _at(key)
    return MetricCollection(
        {
            f"{stage}/top{k}{suffix}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for k in (1, 5)
        },
        compute_groups=False,
    )
