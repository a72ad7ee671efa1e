"""Accuracy on videos that are seen in several views. Each video counts once, on any number of devices.

Letters: n views or videos, C classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Videos(NamedTuple):
    """Logits and class of each video.

    Attributes:
        logits: Mean over the views of each video, `(n, C)`.
        targets: Classes `(n,)`.
        index: Places of the videos in the data set, `(n,)`, ascending.
    """

    logits: Tensor
    targets: Tensor
    index: Tensor


class MultiViewAccuracy(Metric):
    """Top-k accuracy of the mean of each video's logits over its views.

    A sample is either a video with all its views (`update` then gets their mean) or a single view (with its number). A
    sample that several ranks saw, because a distributed sampler fills up its last round with repeats, counts once: the
    first one in the order of the ranks is kept. The views of one video may lie on different ranks.

    Logits are averaged, not probabilities, as in ViViT's test protocol.

    Args:
        num_classes: Number of classes C.
        top_k: Values of k; those above C are taken as C.
    """

    full_state_update = False
    higher_is_better = True
    _STATES = ("logits", "targets", "videos", "views")

    logits: list[Tensor]
    targets: list[Tensor]
    videos: list[Tensor]
    views: list[Tensor]

    def __init__(self, num_classes: int, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.top_k = num_classes, tuple(top_k)
        for name in self._STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor, videos: Tensor, views: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            logits: Logits `(n, C)`.
            targets: Classes `(n,)`.
            videos: Place of each sample's video in the data set, `(n,)`.
            views: Number of each sample's view, `(n,)`; None where each is the mean over all views of its video.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if (
            logits.ndim != 2
            or logits.shape[1] != self.num_classes
            or not (targets.shape == videos.shape == logits.shape[:1])
        ):
            raise ValueError(
                f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)} and videos {tuple(videos.shape)} do not "
                f"fit: expected (n, {self.num_classes}), (n,) and (n,)"
            )
        self.logits.append(logits.detach().float())
        self.targets.append(targets.long())
        self.videos.append(videos.long())
        self.views.append(torch.zeros_like(videos).long() if views is None else views.long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics; a rank without videos takes part too."""
        if not self.logits:
            empty = torch.zeros(0, dtype=torch.long, device=self.device)
            self.logits.append(torch.zeros(0, self.num_classes, device=self.device))
            for state in (self.targets, self.videos, self.views):
                state.append(empty)
        super().sync(*args, **kwargs)

    def grouped(self) -> Videos:
        """The videos of all ranks; every rank must call this.

        Raises:
            ValueError: If there are none, or two views of one video have different targets.
        """
        with self.sync_context():
            return self._group()

    def compute(self) -> dict[str, Tensor]:
        """Share of videos whose class is among the k most likely ones, as `{"top1": ..., "top5": ...}`."""
        videos = self._group()
        return {f"top{k}": top_k_accuracy(videos.logits, videos.targets, k) for k in self.top_k}

    def _group(self) -> Videos:
        states = [getattr(self, name) for name in self._STATES]
        states = [torch.cat(state) if isinstance(state, list) and state else state for state in states]
        if not len(states[0]):
            raise ValueError("no video was evaluated: the test data are empty")
        logits, targets, videos, views = states
        key = torch.stack([videos, views], dim=1)  # (n, 2)
        _, place = torch.unique(key, dim=0, return_inverse=True)
        first = torch.full((int(place.max()) + 1,), len(place), device=place.device)
        first = first.scatter_reduce(0, place, torch.arange(len(place), device=place.device), "amin")  # of each key
        index, group = torch.unique(videos[first], return_inverse=True)
        logits, targets = logits[first].double(), targets[first]
        # The order of the views depends on the number of devices; in float64 it does not change the result.
        total = torch.zeros(len(index), self.num_classes, dtype=torch.float64, device=logits.device)
        total.index_add_(0, group, logits)
        target = torch.zeros_like(index).scatter_(0, group, targets)
        wrong = index[group[target[group] != targets]]
        if len(wrong):
            raise ValueError(
                f"the views of video {int(wrong[0])} have different targets: number the videos differently"
            )
        return Videos((total / group.bincount()[:, None]).float(), target, index)


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Share of samples whose class is among the k most likely ones.

    Args:
        logits: Logits `(n, C)`.
        targets: Classes `(n,)`.
        k: Number of classes that count as right; taken as C where it is larger.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (n, k)
    return (best == targets[:, None]).any(dim=1).float().mean()
