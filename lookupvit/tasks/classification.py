"""Image classification: dual-head loss at one or many compressed sizes, and the accuracy at each of them."""

import os
from math import prod
from typing import Any

import torch

from lookupvit.analysis.budget import largest_size
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.grid import Tokens, check_compressed_size
from lookupvit.model.zoo import create_model, model_arguments
from lookupvit.tasks.base import check
from lookupvit.tasks.losses import LOSSES, classification_loss, distillation_loss
from lookupvit.tasks.sampling import Size, check_sizes, draw_size, sandwich_sizes
from lookupvit.tasks.scores import mean_logits, new_samples
from lookupvit.tasks.set_scores import SetScores, named
from lookupvit.tasks.trained_sizes import TrainedSizes


class ClassificationTask(TrainedSizes):
    """Trains and tests an image classifier: LookupViT, or a ViT beside it.

    Batches are ``(images, targets)``: images ``(B, 3, H, W)``, normalised; targets ``(B,)`` classes or ``(B, C)``
    probabilities. Batches of ``predict`` are ``(images, files)``. The training loss is the mean of the heads' losses.

    With ``compressed_sizes`` each training step draws one of them, from (seed, step) alone, and evaluation reports
    every one of them in one pass over the data.

    Logged: ``train/loss``; ``train/compressed_tokens`` where sizes are drawn; ``val/loss``, ``val/top1``, ``val/top5``
    of the mean of the heads' logits at the main size, and the same for each head alone, such as
    ``val/top1_compressed``; at every size that is evaluated besides, ``val/top1@3x3`` and so on; ``test/...`` likewise.

    Args:
        name: Model, one of ``lookupvit.list_models()``.
        num_classes: Classes; the command line takes it from the data. None keeps the model's own.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the model's own.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; None: the largest of ``compressed_sizes``, or
            the model's own.
        compressed_sizes: Sizes of multi-resolution training; None trains at ``compressed_size`` alone.
        size_weights: How often each of ``compressed_sizes`` is drawn, relative to the others; None: equally often.
        sandwich: Train at the largest, the smallest and one size between in every step (about three times the work).
        distill_weight: With ``sandwich``, the share of the smaller sizes' loss that compares them with the largest.
        eval_compressed_sizes: Sizes to evaluate; None: ``compressed_sizes``, or ``compressed_size`` alone.
        budget_gmacs: Instead of ``compressed_size``: the largest size within so many GMACs per image; of a checkpoint
            among the sizes that it was trained at.
        budget_ms: For ``validate``, ``test`` and ``predict``: likewise, within so many milliseconds per call with one
            image, measured on the device when the checkpoint is loaded.
        untrained_sizes: Let a budget choose a size that the checkpoint was not trained at.
        cascade: For ``predict``: a file of ``lookupvit sweep`` with sizes and thresholds; each image runs at the
            smallest size first, and again at the next only while the model is not sure of it.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        args: Further arguments of ``lookupvit.create_model``, such as ``{"reuse": "renormalize"}``.
        loss: ``"softmax"`` (cross-entropy) or ``"sigmoid"`` (binary cross-entropy, summed over classes).
        label_smoothing: Weight of the uniform distribution mixed into the targets.
        head_bias: First value of the classifiers' biases; -6.9 suits the sigmoid loss with 1000 classes. None keeps
            the model's own.
        eval_head: Head that is evaluated, ``"compressed"`` or ``"lookup"``; None evaluates every head and their mean.
        **options: Of ``StartingTask``: first weights, freezing, teacher; of ``Task``: optimiser, schedule, moving
            average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        compressed_size: tuple[int, ...] | None = None,
        compressed_sizes: list[list[int]] | None = None,
        size_weights: list[float] | None = None,
        sandwich: bool = False,
        distill_weight: float = 0.5,
        eval_compressed_sizes: list[list[int]] | None = None,
        budget_gmacs: float | None = None,
        budget_ms: float | None = None,
        untrained_sizes: bool = False,
        cascade: str | None = None,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        loss: str = "softmax",
        label_smoothing: float = 0.0,
        head_bias: float | None = None,
        eval_head: str | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        check(loss in LOSSES, f"loss {loss!r} is unknown: choose one of {', '.join(LOSSES)}")
        check(0 <= label_smoothing < 1, f"label_smoothing {label_smoothing} is not in [0, 1)")
        check(0 <= distill_weight <= 1, f"distill_weight {distill_weight} is not in [0, 1]")
        check(
            compressed_sizes is not None or not (sandwich or size_weights),
            "sandwich and size_weights need compressed_sizes: give those too, such as [[3, 3], [5, 5]]",
        )
        self.loss, self.label_smoothing, self.distill_weight = loss, label_smoothing, distill_weight
        self.sandwich, self.size_weights = sandwich, size_weights
        self.compressed_sizes = None if compressed_sizes is None else check_sizes(compressed_sizes, size_weights)
        wanted = self.compressed_sizes if eval_compressed_sizes is None else check_sizes(eval_compressed_sizes)
        self.eval_sizes = wanted or []
        check(
            not (self.eval_sizes or self.compressed_sizes) or "compressed_size" in model_arguments(name),
            f"{name} has no compressed tokens: leave compressed_sizes and eval_compressed_sizes out",
        )
        if compressed_size is None and self.compressed_sizes:
            compressed_size = max(self.compressed_sizes, key=prod)
        self.compressed_size = tuple(compressed_size) if compressed_size is not None else None

        arguments = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path_rate, **(args or {})}
        if self.compressed_size is not None:
            arguments["compressed_size"] = self.compressed_size
        self.model = create_model(name, **arguments)
        self._check_budgets(budget_gmacs, budget_ms)
        if budget_gmacs is not None:
            self.compressed_size = self.model.compressed_size = largest_size(
                self.model,
                gmacs=budget_gmacs,
                head=eval_head,
                candidates=None if untrained_sizes else self.compressed_sizes,
            )
        self.cascade = None if cascade is None else Cascade.load(cascade)
        for size in [*self.eval_sizes, *(self.compressed_sizes or []), *(self.cascade.sizes if self.cascade else ())]:
            check_compressed_size(size, self.model.embed.grid_size)
        heads = tuple(getattr(self.model, "heads", ())) or ("pooled",)
        check(
            eval_head is None or (eval_head in heads and heads != ("pooled",)),
            f"eval_head {eval_head!r} does not exist: {name} has {', '.join(heads)}; null evaluates every head",
        )
        self.eval_head = eval_head
        if head_bias is not None:
            self.model.init_head_bias(head_bias)
        self._prepare()
        self._features = self.model.forward_features
        self._tokens = getattr(self.model, "forward_tokens", None)

        self._build_scores()
        self.set_scores: SetScores | None = None

    def setup(self, stage: str) -> None:
        """Compiles the model, in this process and after any copy of it was made."""
        check(
            self.cascade is None or stage == "predict",
            f"cascade is of predict, not of {getattr(stage, 'value', stage)}: set --model.cascade null; "
            "lookupvit sweep scores cascades",
        )
        super().setup(stage)
        if self.compile_model:
            shapes = 4 * max(len(self.eval_sizes), len(self.compressed_sizes or []), 1)  # train and eval, last batches
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, shapes)
            self._features = torch.compile(self.model.forward_features, dynamic=False)
            if self._tokens is not None:
                self._tokens = torch.compile(self.model.forward_tokens, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)`` of images ``(B, 3, H, W)``: the mean of the heads, or ``eval_head`` alone."""
        return mean_logits(self.head_logits(images, self.compressed_size, self.eval_head))

    def head_logits(
        self, images: torch.Tensor, compressed_size: Size | None = None, head: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Logits ``(B, C)`` by head, of images ``(B, 3, H, W)``; None keeps the model's own size and heads."""
        return self.model.forward_logits(self._tokens_at(images, compressed_size, head))

    def _tokens_at(self, images: torch.Tensor, compressed_size: Size | None, head: str | None) -> Tokens:
        options = {} if compressed_size is None else {"compressed_size": compressed_size}
        if head is not None:
            options["head"] = head
        return self._features(images, **options)

    def logits_at_sizes(
        self, images: torch.Tensor, sizes: list[Size], head: str | None = None
    ) -> dict[Size, dict[str, torch.Tensor]]:
        """Logits ``(B, C)`` by size and head, of images ``(B, 3, H, W)`` that are embedded once."""
        tokens = self.tokens_at_sizes(images, sizes, head)
        return {size: self.model.forward_logits(value) for size, value in tokens.items()}

    def tokens_at_sizes(
        self, images: torch.Tensor, sizes: list[Size | None], head: str | None = None
    ) -> dict[Size | None, Tokens]:
        """Normalised tokens by size, of images ``(B, 3, H, W)`` that are embedded once."""
        if len(sizes) == 1:
            return {sizes[0]: self._tokens_at(images, sizes[0], head)}
        lookup, grid = self.model.embed_images(images)
        return {size: self._tokens(lookup, grid, size, head) for size in sizes}

    def training_sizes(self, step: int) -> list[Size | None]:
        """Compressed sizes of the training step ``step``; with the sandwich rule the teacher comes first."""
        if self.compressed_sizes is None:
            return [self.compressed_size]
        if self.sandwich:
            return list(sandwich_sizes(self.compressed_sizes, self.size_weights, self._seed, step))
        return [draw_size(self.compressed_sizes, self.size_weights, self._seed, step)]

    @property
    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0))  # where Lightning's seed_everything leaves it, on every rank

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean of the heads' losses, and of the sizes'; with a teacher, of the first size also what it teaches."""
        images, targets = batch
        sizes = self.training_sizes(self.global_step)
        tokens = self.tokens_at_sizes(images, sizes)
        by_size = {size: self.model.forward_logits(value) for size, value in tokens.items()}
        losses = {head: self._loss(value, targets) for head, value in by_size[sizes[0]].items()}
        losses = self.learn(losses, by_size[sizes[0]], tokens[sizes[0]], self.lesson(images))
        loss = torch.stack(list(losses.values())).mean()
        if len(losses) > 1:
            self.log_dict({f"train/loss_{head}": value.detach() for head, value in losses.items()})
        if len(sizes) > 1:
            loss = self._taught(loss, by_size, sizes, targets)
        elif self.compressed_sizes is not None:
            self.log("train/compressed_tokens", float(prod(sizes[0])))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _taught(
        self, loss: torch.Tensor, by_size: dict[Size, dict[str, torch.Tensor]], sizes: list[Size], targets: torch.Tensor
    ) -> torch.Tensor:
        """The sandwich rule's loss: the largest size learns from the targets, the others from it as well."""
        teacher = mean_logits(by_size[sizes[0]]).detach().float()
        total, share = loss, self.distill_weight
        for size, role in zip(sizes[1:], ("smallest", "between"), strict=False):
            own = torch.stack(
                [
                    (1 - share) * self._loss(value, targets)
                    + share * distillation_loss(value.float(), teacher, self.loss)
                    for value in by_size[size].values()
                ]
            ).mean()
            self.log(f"train/loss_{role}", own.detach())
            total = total + own
        self.log("train/loss_largest", loss.detach())
        return total / len(sizes)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics ``val/...``."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Prepares the scores of several test sets, where the data has those."""
        sets = getattr(self.trainer.datamodule, "test_sets", None)
        self.set_scores = None if sets is None else SetScores(sets, self.scores["test"].evaluated).to(self.device)
        self.robustness_results = {}

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics ``test/...``; targets of several test sets are ``[classes (B,), sets (B,)]``."""
        loader = self.trainer.test_dataloaders
        if self.set_scores is None:
            self._evaluate(batch, batch_idx, "test", loader)
            return
        images, (targets, places) = batch
        by_size = self.logits_at_sizes(images, self.scores["test"].evaluated, self.eval_head)
        new = new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        self.set_scores.update(by_size, targets[:new], places[:new])

    def on_test_epoch_end(self) -> None:
        """Logs the summary of several test sets, and keeps the whole as ``robustness_results``."""
        if self.set_scores is not None:
            self.robustness_results = self.set_scores.compute()
            self.log_dict(named(self.robustness_results), rank_zero_only=True)

    def predict_step(self, batch: tuple[torch.Tensor, list[str]], batch_idx: int) -> dict[str, Any]:
        """The most likely classes (at most 5) of each file, ``{"files", "probabilities" (B, k), "classes" (B, k)}``.

        With a cascade also ``"sizes"``, the compressed size that each file ended at. A file that could not be read,
        whose name has an ``error``, gets probabilities NaN and classes -1.
        """
        images, files = batch
        more = {}
        if self.cascade is None:
            logits = self(images).float()
        else:
            logits, stage = self.cascade.predict(self.model, images, self.eval_head)
            more["sizes"] = [self.cascade.sizes[i] for i in stage.tolist()]
        probabilities = logits.softmax(dim=1) if self.loss == "softmax" else logits.sigmoid()
        values, classes = (part.cpu() for part in probabilities.topk(min(5, logits.shape[1]), dim=1))
        unread = [place for place, file in enumerate(files) if hasattr(file, "error")]
        values[unread], classes[unread] = float("nan"), -1
        return {"files": list(files), "probabilities": values, "classes": classes, **more}

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return classification_loss(logits.float(), targets, self.loss, self.label_smoothing)

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
