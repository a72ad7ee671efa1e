"""Image classification, step by step: dual-head loss at one or many compressed sizes, and the accuracy at each."""

from math import prod
from typing import Any

import torch

from datamodules.loading.resumable import run_seed
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.grid import Tokens
from lookupvit.tasks.base import check
from lookupvit.tasks.classifier import ClassifierTask
from lookupvit.tasks.losses import LOSSES, classification_loss, distillation_loss, feature_loss, mean_logits, pooled
from lookupvit.tasks.sampling import Size, sizes_of_step
from lookupvit.tasks.scores import SetScores, new_samples
from lookupvit.tasks.teacher import Lesson, Teacher


class ClassificationTask(ClassifierTask):
    """Trains and tests an image classifier: LookupViT, or a ViT beside it.

    Batches are `(images, targets)`: images `(B, 3, H, W)`, normalised; targets `(B,)` classes or `(B, C)`
    probabilities. Batches of `predict` are `(images, files)`. The training loss is the mean of the heads' losses.

    With `compressed_sizes` each training step draws one of them, from (seed, step) alone, and evaluation reports
    every one of them in one pass over the data.

    Logged: `train/loss`; `train/compressed_tokens` where sizes are drawn; `val/loss`, `val/top1`, `val/top5` of the
    mean of the heads' logits at the main size, and the same for each head alone, such as `val/top1_compressed`; for
    every further size that is evaluated `val/top1@3x3` and so on; `test/...` likewise. With a teacher, which the paper
    does not have: `train/loss_teacher` and `train/loss_features`.

    Args:
        name: Model, one of `lookupvit.list_models()`.
        num_classes: Number of classes; the command line takes it from the data. None keeps the model's own.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the model's own.
        loss: `"softmax"` (cross-entropy) or `"sigmoid"` (binary cross-entropy, summed over classes).
        label_smoothing: Weight of the uniform distribution mixed into the targets.
        sandwich: Train at the largest, the smallest and one size between in every step (about three times the work).
        distill_weight: With `sandwich`, the share of the smaller sizes' loss that compares them with the largest.
        teacher: A frozen image classifier to learn from: a checkpoint of `lookupvit fit`, a folder of
            `save_pretrained`, or the name of a timm ViT. It has the same classes.
        teacher_weight: Share of the loss that compares logits with the teacher's, in [0, 1].
        teacher_feature_weight: Weight of one minus the cosine between the pooled tokens and the teacher's, which need
            the same width; 0 leaves it out.
        **options: Options of `ClassifierTask`: model, sizes, first weights; and of `Task`: optimiser, schedule, moving
            average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        *,
        loss: str = "softmax",
        label_smoothing: float = 0.0,
        sandwich: bool = False,
        distill_weight: float = 0.5,
        teacher: str | None = None,
        teacher_weight: float = 0.5,
        teacher_feature_weight: float = 0.0,
        **options,
    ) -> None:
        check(loss in LOSSES, f"loss {loss!r} is unknown: choose one of {', '.join(LOSSES)}")
        check(0 <= label_smoothing < 1, f"label_smoothing {label_smoothing} is not in [0, 1)")
        check(0 <= distill_weight <= 1, f"distill_weight {distill_weight} is not in [0, 1]")
        check(
            not sandwich or options.get("compressed_sizes") is not None,
            "sandwich and size_weights need compressed_sizes: give those too, such as [[3, 3], [5, 5]]",
        )
        check(0 <= teacher_weight <= 1, f"teacher_weight {teacher_weight} is not in [0, 1]")
        check(teacher_feature_weight >= 0, f"teacher_feature_weight {teacher_feature_weight} is negative: 0 is none")
        super().__init__(name, num_classes, img_size, **options)
        self.loss, self.label_smoothing = loss, label_smoothing
        self.sandwich, self.distill_weight = sandwich, distill_weight
        self.teacher_name = teacher
        self.teacher_weight, self.teacher_feature_weight = teacher_weight, teacher_feature_weight
        self.teacher: Teacher | None = None
        self.set_scores: SetScores | None = None

    def setup(self, stage: str) -> None:
        """Reads the first weights and the teacher where training starts, and compiles the model."""
        super().setup(stage)
        if stage != "fit" or self.teacher_name is None or self.teacher is not None:
            return
        check(not hasattr(self.model, "num_frames"), "teacher is of image models: set --model.teacher null")
        pixels = Pixels.of_data(getattr(self._trainer, "datamodule", None))
        self.teacher = Teacher(self.teacher_name, self.model.num_classes, self.model.img_size, pixels)
        check(
            not self.teacher_feature_weight or self.teacher.width == self.model.embed_dim,
            f"teacher {self.teacher_name} is of width {self.teacher.width}, the model of {self.model.embed_dim}: "
            "set --model.teacher_feature_weight 0",
        )

    def on_fit_start(self) -> None:
        """Moves the teacher to the model's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    # -- training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean of the heads' losses; over several sizes, the mean of the sizes' losses."""
        images, targets = batch
        sizes = self.training_sizes(self.global_step)
        tokens = self.tokens_at_sizes(images, sizes)
        logits = {size: self.model.forward_logits(value) for size, value in tokens.items()}
        losses = {head: self._loss(value, targets) for head, value in logits[sizes[0]].items()}
        if self.teacher is not None:
            losses = self._with_teacher(losses, logits[sizes[0]], tokens[sizes[0]], self.teacher(images))
        loss = torch.stack(list(losses.values())).mean()
        if len(losses) > 1:
            self.log_dict({f"train/loss_{head}": value.detach() for head, value in losses.items()})
        if len(sizes) > 1:
            loss = self._sandwich_loss(loss, logits, sizes, targets)
        elif self.compressed_sizes is not None:
            self.log("train/compressed_tokens", float(prod(sizes[0])))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def training_sizes(self, step: int) -> list[Size | None]:
        """Compressed sizes of the training step `step`; with the sandwich rule the largest comes first."""
        sizes = self.compressed_sizes or [self.compressed_size]
        return sizes_of_step(sizes, self.size_weights, run_seed(), step, self.sandwich)

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return classification_loss(logits.float(), targets, self.loss, self.label_smoothing)

    def _with_teacher(
        self, losses: dict[str, torch.Tensor], logits: dict[str, torch.Tensor], tokens: Tokens, lesson: Lesson
    ) -> dict[str, torch.Tensor]:
        """Mixes the teacher's share into each head's loss; `logits` `(B, C)` were read from `tokens`."""
        share = self.teacher_weight
        taught = {head: distillation_loss(z.float(), lesson.logits.float(), self.loss) for head, z in logits.items()}
        self.log("train/loss_teacher", torch.stack(list(taught.values())).mean().detach())
        losses = {head: (1 - share) * losses[head] + share * taught[head] for head in losses}
        if self.teacher_feature_weight:
            features = feature_loss(pooled(tokens), lesson.pooled)
            self.log("train/loss_features", features.detach())
            losses = {head: value + self.teacher_feature_weight * features for head, value in losses.items()}
        return losses

    def _sandwich_loss(
        self,
        largest: torch.Tensor,
        logits: dict[Size, dict[str, torch.Tensor]],
        sizes: list[Size],
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Mean over the sizes: the largest learns from the targets, the others from its logits too."""
        teacher = mean_logits(logits[sizes[0]]).detach().float()
        total, share = largest, self.distill_weight
        for size, role in zip(sizes[1:], ("smallest", "between"), strict=False):
            by_head = [
                (1 - share) * self._loss(value, targets) + share * distillation_loss(value.float(), teacher, self.loss)
                for value in logits[size].values()
            ]
            loss = torch.stack(by_head).mean()
            self.log(f"train/loss_{role}", loss.detach())
            total = total + loss
        self.log("train/loss_largest", largest.detach())
        return total / len(sizes)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics `val/...`."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Prepares the scores of several test sets, where the data has those."""
        sets = getattr(self.trainer.datamodule, "test_sets", None)
        self.set_scores = None if sets is None else SetScores(sets, self.scores["test"].evaluated).to(self.device)
        self.robustness_results = {}

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics `test/...`; targets of several test sets are `[classes (B,), sets (B,)]`."""
        loader = self.trainer.test_dataloaders
        if self.set_scores is None:
            self._evaluate(batch, batch_idx, "test", loader)
            return
        images, (targets, sets) = batch
        logits = self.logits_at_sizes(images, self.scores["test"].evaluated, self.eval_head)
        new = new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        self.set_scores.update(logits, targets[:new], sets[:new])

    def on_test_epoch_end(self) -> None:
        """Logs the summary of several test sets, and keeps all their results as `robustness_results`."""
        if self.set_scores is not None:
            self.robustness_results = self.set_scores.compute()
            self.log_dict(self.set_scores.summary(self.robustness_results), rank_zero_only=True)

    def _evaluate(self, batch: tuple, batch_idx: int, stage: str, loader: Any) -> None:
        images, targets = batch
        if self.class_index is not None:
            targets = self.class_index.to(targets.device)[targets]
        scores = self.scores[stage]
        by_size = self.logits_at_sizes(images, scores.evaluated, self.eval_head)
        new = new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        for size, by_head in by_size.items() if new else ():
            logits = {head: value[:new].float() for head, value in by_head.items()}
            losses = [self._loss(value, targets[:new]) for value in logits.values()]
            scores.update(size, logits, losses, targets[:new])
        scores.log(self, len(images))

    def predict_step(self, batch: tuple[torch.Tensor, list[str]], batch_idx: int) -> dict[str, Any]:
        """The most likely classes (at most 5) of each file, `{"files", "probabilities" (B, k), "classes" (B, k)}`.

        With a cascade also `"sizes"`, the compressed size at which each file was decided. A file that could not be
        read, whose name has an `error`, gets probabilities NaN and classes -1.
        """
        images, files = batch
        sizes = {}
        if self.cascade is None:
            logits = self(images).float()
        else:
            logits, stage = self.cascade.predict(self.model, images, self.eval_head)
            sizes = {"sizes": [self.cascade.sizes[i] for i in stage.tolist()]}
        probabilities = logits.softmax(dim=1) if self.loss == "softmax" else logits.sigmoid()
        values, classes = (part.cpu() for part in probabilities.topk(min(5, logits.shape[1]), dim=1))
        unread = [place for place, file in enumerate(files) if hasattr(file, "error")]
        values[unread], classes[unread] = float("nan"), -1
        return {"files": list(files), "probabilities": values, "classes": classes, **sizes}
