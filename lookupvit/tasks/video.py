"""Video classification: as for images, with a test that averages the views of each video."""

from typing import Any

import torch
from torch import nn

from lookupvit.grid import size_name
from lookupvit.metrics.multiview import MultiViewAccuracy, top_k_accuracy
from lookupvit.model.zoo import model_arguments
from lookupvit.tasks.base import check
from lookupvit.tasks.classification import ClassificationTask
from lookupvit.tasks.losses import mean_logits
from lookupvit.tasks.sampling import Size
from lookupvit.tasks.scores import MAIN


class VideoTask(ClassificationTask):
    """Trains and tests a video classifier: LookupViViT, or a ViViT beside it.

    Batches of training and validation are `(clips, targets)`: clips `(B, 3, T, H, W)`, normalised. Batches of test
    are `(views, targets, videos)`: views `(B, V, 3, T, H, W)`, the V = clips x crops views of each video, and
    `(B,)` the place of each video in the data set; `(clips, targets)` is tested as in validation. Batches of `predict`
    are `(clips or views, files)`.

    A video's logits are the mean of the logits of its views, as in ViViT's test (not of the probabilities). Each video
    counts once on any number of devices: a video that a distributed sampler repeats is recognised by its place.

    Logged: as by `ClassificationTask`; `test/loss` and `test/top...` are of the averaged logits.

    Args:
        name: Model, such as `"lookupvivit_base_joint_patch16x2_224"`.
        num_frames: Number of frames in a clip; the command line takes it from the data. None keeps the model's own.
        args: Further arguments of `lookupvit.create_model`.
        view_batch: Number of views that go through the model at a time in test and predict; None: all of a batch.
        **options: Options of `ClassificationTask`. Compressed sizes have three entries, `[4, 3, 3]`; in a factorised
            model the first is the number of time indices, and may be left out of `compressed_size`.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        num_frames: int | None = None,
        args: dict[str, Any] | None = None,
        view_batch: int | None = None,
        **options,
    ) -> None:
        check(
            "num_frames" in model_arguments(name),
            f"{name} is a model of images: name a video model, such as lookupvivit_base_joint_patch16x2_224",
        )
        for option in ("budget_gmacs", "budget_ms", "cascade"):
            check(options.get(option) is None, f"{option} is for image models only: name a compressed_size instead")
        check(view_batch is None or view_batch > 0, f"view_batch {view_batch} is not positive: null takes all at once")
        given = {} if num_frames is None else {"num_frames": num_frames}
        super().__init__(name, args={**given, **(args or {})}, **options)
        self.view_batch = view_batch
        for size in [*self.eval_sizes, *(self.compressed_sizes or [])]:
            self.model.check_size(size)
        self.views = nn.ModuleDict(
            {
                size: nn.ModuleDict({head: MultiViewAccuracy(self.model.num_classes) for head in by_head})
                for size, by_head in self.scores["test"].accuracies.items()
            }
        )

    def logits_at_sizes(
        self, images: torch.Tensor, sizes: list[Size], head: str | None = None
    ) -> dict[Size, dict[str, torch.Tensor]]:
        """Logits `(B, C)` by size and head, of clips `(B, 3, T, H, W)` or views `(B, V, 3, T, H, W)`."""
        if images.ndim < 6:
            return super().logits_at_sizes(images, sizes, head)
        B, V = images.shape[:2]
        parts = [
            super(VideoTask, self).logits_at_sizes(views, sizes, head)
            for views in images.flatten(0, 1).split(self.view_batch or B * V)  # (B, V, ...) -> (B V, ...)
        ]
        return {
            size: {
                # (B V, C) -> (B, V, C) -> (B, C)
                name: torch.cat([part[size][name] for part in parts]).float().unflatten(0, (B, V)).mean(dim=1)
                for name in parts[0][size]
            }
            for size in sizes
        }

    def test_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        """Collects the averaged logits of each video."""
        if len(batch) == 2:
            super().test_step(batch, batch_idx)
            return
        views, targets, videos = batch
        scores = self.scores["test"]
        for size, logits in self.logits_at_sizes(views, scores.evaluated, self.eval_head).items():
            mean = mean_logits(logits)
            for head, metric in self.views[MAIN if size == scores.main else size_name(size)].items():
                metric.update(mean if head == "mean" else logits[head], targets, videos)

    def on_test_epoch_end(self) -> None:
        """Logs the accuracy over the videos of all devices."""
        main = self.model.compressed_size
        seen = next(iter(self.views[MAIN].values())).update_called
        # A rank that got no video takes part nevertheless.
        if not self.trainer.strategy.reduce_boolean_decision(seen, all=False):
            return
        for key, by_head in self.views.items():
            at, losses = "" if key == MAIN else f"@{key}", {}
            for head, metric in by_head.items():
                videos = metric.grouped()
                losses[head] = self._loss(videos.logits, videos.targets)
                accuracy = {f"top{k}": top_k_accuracy(videos.logits, videos.targets, k) for k in metric.top_k}
                suffix = ("" if head == "mean" else f"_{head}") + at
                named = {f"test/{name}{suffix}": value for name, value in accuracy.items()}
                if key == MAIN and head == "mean" and main in self.eval_sizes:
                    named |= {f"test/{name}@{size_name(main)}": value for name, value in accuracy.items()}
                self.log_dict(named, sync_dist=True)  # equal on all ranks
                metric.reset()
            own = [value for head, value in losses.items() if head != "mean"] or [losses["mean"]]
            self.log(f"test/loss{at}", torch.stack(own).mean(), sync_dist=True)
