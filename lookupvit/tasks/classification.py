"""Image classification: dual-head loss, accuracy of each head and of their mean, optimiser and schedule."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lookupvit.model.zoo import create_model
from lookupvit.tasks.losses import LOSSES, classification_loss
from lookupvit.tasks.optim import build_adamw, decayed_names, parameter_groups, warmup_cosine

# Hyper-parameters of a parameter group that the present run decides, also after a resume.
_GROUP_OPTIONS = ("lr", "weight_decay", "betas", "eps", "fused", "name")


class ClassificationTask(LightningModule):
    """Trains and tests an image classifier: LookupViT, or a ViT beside it.

    Batches are ``(images, targets)``: images ``(B, 3, H, W)``, normalised; targets ``(B,)`` classes or ``(B, C)``
    probabilities. Batches of ``predict`` are ``(images, files)``. The training loss is the mean of the heads' losses.

    Logged: ``train/loss``; ``val/loss``, ``val/top1``, ``val/top5`` of the mean of the heads' logits, and the same for
    each head alone, such as ``val/top1_compressed``; ``test/...`` likewise.

    Args:
        name: Model, one of ``lookupvit.list_models()``.
        num_classes: Classes; the command line takes it from the data. None keeps the model's own.
        img_size: Image size, an int or (height, width) in pixels; the command line takes it from the data. None keeps
            the model's own.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; None keeps the model's own.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        args: Further arguments of ``lookupvit.create_model``, such as ``{"reuse": "renormalize"}``.
        loss: ``"softmax"`` (cross-entropy) or ``"sigmoid"`` (binary cross-entropy, summed over classes).
        label_smoothing: Weight of the uniform distribution mixed into the targets.
        head_bias: First value of the classifiers' biases; -6.9 suits the sigmoid loss with 1000 classes. None keeps
            the model's own.
        lr: Highest learning rate. It is used as given: it does not change with the number of devices.
        min_lr: Learning rate at the end of the cosine.
        weight_decay: AdamW's weight decay, on matrices only.
        betas: AdamW's betas.
        warmup_epochs: Length of the linear warm-up in epochs (or give ``warmup_steps``).
        warmup_steps: Length of the linear warm-up in optimiser steps.
        layer_decay: Each layer's learning rate over that of the layer above; below 1 for fine-tuning.
        ema_decay: Decay of the moving average of the weights, evaluated and saved in place of the raw ones; None: none.
        eval_head: Head that is evaluated, ``"compressed"`` or ``"lookup"``; None evaluates every head and their mean.
        compile: Run the model through ``torch.compile``.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        compressed_size: tuple[int, ...] | None = None,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        loss: str = "softmax",
        label_smoothing: float = 0.0,
        head_bias: float | None = None,
        lr: float = 1e-3,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        eval_head: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(loss in LOSSES, f"loss {loss!r} is unknown: choose one of {', '.join(LOSSES)}")
        _check(0 <= label_smoothing < 1, f"label_smoothing {label_smoothing} is not in [0, 1)")
        _check(0 <= min_lr <= lr and lr > 0, f"min_lr {min_lr} and lr {lr}: give 0 <= min_lr <= lr and lr > 0")
        _check(0 < layer_decay <= 1, f"layer_decay {layer_decay} is not in (0, 1]: 1 turns it off")
        _check(ema_decay is None or 0 < ema_decay < 1, f"ema_decay {ema_decay} is not in (0, 1): null turns it off")
        _check(
            not (warmup_epochs and warmup_steps), "warmup_epochs and warmup_steps are both set: set one of them to 0"
        )
        self.loss, self.label_smoothing = loss, label_smoothing
        self.lr, self.min_lr, self.weight_decay, self.betas = lr, min_lr, weight_decay, tuple(betas)
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_steps
        self.layer_decay, self.ema_decay = layer_decay, ema_decay
        self.compressed_size = tuple(compressed_size) if compressed_size is not None else None
        self.class_names: list[str] | None = None

        options = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path_rate, **(args or {})}
        if self.compressed_size is not None:
            options["compressed_size"] = self.compressed_size
        self.model = create_model(name, **options)
        heads = tuple(getattr(self.model, "heads", ())) or ("pooled",)
        _check(
            eval_head is None or (eval_head in heads and heads != ("pooled",)),
            f"eval_head {eval_head!r} does not exist: {name} has {', '.join(heads)}; null evaluates every head",
        )
        self.eval_head = eval_head
        if head_bias is not None:
            self.model.init_head_bias(head_bias)
        self._decayed = decayed_names(self.model, self.model.no_weight_decay())
        self._features = self.model.forward_features
        self._compile = compile

        # One set of metrics a head and one for the mean; a model with a single head has the mean alone.
        names = ["mean"] + (list(heads) if eval_head is None and len(heads) > 1 else [])
        self.metrics = nn.ModuleDict(
            {
                stage: nn.ModuleDict({head: _metrics(stage, head, self.model.num_classes) for head in names})
                for stage in _STAGES
            }
        )
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in _STAGES})

    def setup(self, stage: str) -> None:
        """Compiles the model, in this process and after any copy of it was made."""
        if self._compile:
            self._features = torch.compile(self.model.forward_features, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C)`` of images ``(B, 3, H, W)``: the mean of the heads, or ``eval_head`` alone."""
        return torch.stack(list(self.head_logits(images, self.compressed_size, self.eval_head).values())).mean(dim=0)

    def head_logits(
        self, images: torch.Tensor, compressed_size: tuple[int, ...] | None = None, head: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Logits ``(B, C)`` by head, of images ``(B, 3, H, W)``; None keeps the model's own size and heads."""
        options = {} if compressed_size is None else {"compressed_size": compressed_size}
        if head is not None:
            options["head"] = head
        return self.model.forward_logits(self._features(images, **options))

    def training_compressed_size(self, step: int) -> tuple[int, ...] | None:
        """Compressed size of the training step ``step``; the place for a schedule of sizes."""
        return self.compressed_size

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean of the heads' losses."""
        images, targets = batch
        logits = self.head_logits(images, self.training_compressed_size(self.global_step))
        losses = {head: self._loss(value, targets) for head, value in logits.items()}
        loss = torch.stack(list(losses.values())).mean()
        self.log("train/loss", loss, prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"train/loss_{head}": value.detach() for head, value in losses.items()})
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics ``val/...``."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Updates the metrics ``test/...``."""
        self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def predict_step(self, batch: tuple[torch.Tensor, list[str]], batch_idx: int) -> dict[str, Any]:
        """The most likely classes (at most 5) of each file, ``{"files", "probabilities" (B, k), "classes" (B, k)}``."""
        images, files = batch
        logits = self(images).float()
        probabilities = logits.softmax(dim=1) if self.loss == "softmax" else logits.sigmoid()
        top = probabilities.topk(min(5, logits.shape[1]), dim=1)
        return {"files": list(files), "probabilities": top.values.cpu(), "classes": top.indices.cpu()}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, with a linear warm-up and a cosine by step."""
        groups = parameter_groups(
            self.model.named_parameters(),
            self._decayed,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            layer_id=self.model.layer_id,
            top=self.model.num_layers - 1,
        )
        optimizer = build_adamw(groups, betas=self.betas)
        self._group_options = [{k: g[k] for k in _GROUP_OPTIONS if k in g} for g in optimizer.param_groups]
        total, warmup = self._schedule_steps()
        factor = warmup_cosine(total, warmup, self.min_lr / self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_train_start(self) -> None:
        """Puts this run's learning rate and decay in place of those that a resumed optimiser brought along."""
        for scheduler, optimizer in zip(self.trainer.lr_scheduler_configs, self.trainer.optimizers, strict=True):
            scheduler.scheduler.base_lrs = [options["lr"] for options in self._group_options]
            factor = scheduler.scheduler.lr_lambdas[0](scheduler.scheduler.last_epoch)
            for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
                group.update({**options, "initial_lr": options["lr"], "lr": options["lr"] * factor})

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, while training."""
        if self.ema_decay is None or self.trainer.state.fn != "fit":
            return []
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError("ema_decay does not work with strategy fsdp: set --model.ema_decay null or use ddp")
        return [EMAWeightAveraging(decay=self.ema_decay)]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clips as the Trainer asks, also where Lightning refuses: FSDP's shards, and fused AdamW in bfloat16."""
        by_norm = gradient_clip_val and gradient_clip_algorithm in (None, "norm")
        if by_norm and isinstance(self.trainer.strategy, FSDPStrategy):
            self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)
        elif by_norm and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps this class's path, and the class names, so that ``predict`` can be read without the training data."""
        checkpoint["task"] = f"{type(self).__module__}.{type(self).__qualname__}"
        names = getattr(self.trainer.datamodule, "class_names", None) or self.class_names
        if names:
            checkpoint["class_names"] = [str(name) for name in names]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the class names from the checkpoint."""
        self.class_names = checkpoint.get("class_names")

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return classification_loss(logits.float(), targets, self.loss, self.label_smoothing)

    def _schedule_steps(self) -> tuple[int, int]:
        """Optimiser steps of the whole run and of the warm-up."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the length of the run is not known: set --trainer.max_epochs or --trainer.max_steps")
        warmup = self.warmup_steps
        if self.warmup_epochs:
            if self.trainer.max_epochs is None or self.trainer.max_epochs < 1:
                raise ValueError("warmup_epochs needs --trainer.max_epochs: give --model.warmup_steps instead")
            warmup = round(self.warmup_epochs * total / self.trainer.max_epochs)
        if self.trainer.fast_dev_run:
            warmup = min(warmup, int(total) - 1)
        return int(total), warmup

    def _evaluate(self, batch: tuple, batch_idx: int, stage: str, loader: Any) -> None:
        images, targets = batch
        logits = self.head_logits(images, self.compressed_size, self.eval_head)
        new = _new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        targets = targets[:new]
        logits = {head: value[:new].float() for head, value in logits.items()}
        mean = torch.stack(list(logits.values())).mean(dim=0)
        if new:
            losses = [self._loss(value, targets) for value in logits.values()]
            self.losses[stage].update(torch.stack(losses).mean(), weight=new)
            for head, metric in self.metrics[stage].items():
                metric.update(mean if head == "mean" else logits[head], targets)
        self.log(f"{stage}/loss", self.losses[stage], batch_size=len(images))
        for head, metric in self.metrics[stage].items():
            self.log_dict(metric, prog_bar=head == "mean", batch_size=len(images))


_STAGES = ("val", "test")


def _metrics(stage: str, head: str, num_classes: int) -> MetricCollection:
    suffix = "" if head == "mean" else f"_{head}"
    return MetricCollection(
        {
            f"{stage}/top{k}{suffix}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for k in (1, 5)
        },
        compute_groups=False,
    )


def _new_samples(loader: Any, batch_idx: int, batch: int, rank: int) -> int:
    """How many of a batch's samples are not repeats that a distributed sampler added to fill up the last round."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    # Rank r holds the samples r, r + R, r + 2 R, ...; those from len(dataset) on are repeats.
    mine = len(range(rank, len(sampler.dataset), sampler.num_replicas))
    return max(0, min(batch, mine - batch_idx * loader.batch_size))


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
