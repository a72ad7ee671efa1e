"""What every task shares: optimiser and schedule, moving average, gradient clipping, what a checkpoint carries."""

from math import isfinite
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from datamodules.loading.resumable import run_seed
from lookupvit.callbacks.ema import WarmedUpAverage
from lookupvit.callbacks.resume import ExactResume
from lookupvit.checkpoints.contents import CLASS_NAMES, PREPROCESSING, SCORES, TASK, contents_of
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.tasks.belonging import compare_with_data
from lookupvit.tasks.optim import OPTIMIZERS, SCHEDULES, build_optimizer, decayed_names, parameter_groups
from lookupvit.tasks.sharding import shard_blocks, unsharded_class

# Hyper-parameters of a parameter group that the present run decides, also after a resume.
_GROUP_OPTIONS = ("lr", "weight_decay", "betas", "momentum", "eps", "fused", "name")


class Task(LightningModule):
    """A model in training. A subclass builds `self.model` and then calls `self._note_decayed()`.

    The model needs `no_weight_decay()`, `layer_id(name)` and `num_layers`, as `LookupViT` has them.

    Args:
        lr: Highest learning rate. It is used as given: it does not change with the number of devices.
        min_lr: Learning rate at the end of the schedule.
        schedule: What follows the warm-up: `"cosine"`, half a cosine, or `"poly"`, (1 - progress) to the power of 0.9.
        weight_decay: Weight decay, on matrices only.
        optimizer: `"adamw"` or `"sgd"` (without Nesterov's momentum, as in ViViT).
        betas: AdamW's betas.
        momentum: SGD's momentum.
        warmup_epochs: Length of the linear warm-up in epochs (or give `warmup_steps`).
        warmup_steps: Length of the linear warm-up in optimiser steps.
        layer_decay: Each layer's learning rate divided by that of the layer above; below 1 for fine-tuning.
        ema_decay: Decay of the moving average of the weights, which is evaluated and saved in their place; None: no
            average.
        ema_warmup: Let the decay rise to `ema_decay`, as (1 + n) / (10 + n) after n steps.
        compile: Run the model through `torch.compile`.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    monitor = ("val/top1", "max")  # what the best checkpoint is chosen by

    def __init__(
        self,
        lr: float = 1e-3,
        min_lr: float = 0.0,
        schedule: str = "cosine",
        weight_decay: float = 0.05,
        optimizer: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        ema_warmup: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check(0 <= min_lr <= lr and lr > 0, f"min_lr {min_lr} and lr {lr}: give 0 <= min_lr <= lr and lr > 0")
        check(
            weight_decay >= 0, f"weight_decay {weight_decay} is negative, which lets the weights grow: 0 turns it off"
        )
        check(optimizer in OPTIMIZERS, f"optimizer {optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}")
        check(schedule in SCHEDULES, f"schedule {schedule!r} is unknown: choose one of {', '.join(SCHEDULES)}")
        check(0 <= momentum < 1, f"momentum {momentum} is not in [0, 1)")
        check(0 < layer_decay <= 1, f"layer_decay {layer_decay} is not in (0, 1]: 1 turns it off")
        check(ema_decay is None or 0 < ema_decay < 1, f"ema_decay {ema_decay} is not in (0, 1): null turns it off")
        check(ema_decay is not None or not ema_warmup, "ema_warmup needs an average: set ema_decay, such as 0.9999")
        check(not (warmup_epochs and warmup_steps), "warmup_epochs and warmup_steps are both set: set one of them to 0")
        self.lr, self.min_lr, self.weight_decay = lr, min_lr, weight_decay
        self.schedule = schedule
        self.optimizer, self.betas, self.momentum = optimizer, tuple(betas), momentum
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_steps
        self.layer_decay, self.ema_decay, self.ema_warmup = layer_decay, ema_decay, ema_warmup
        self.compile_model = compile
        self.class_names: list[str] | None = None
        self.class_index: torch.Tensor | None = None  # with class_map: place of each class in the checkpoint's order
        self.pixels: Pixels | None = None
        self._scored_step: int | None = None

    def _note_decayed(self) -> None:
        """Notes which parameters decay, before a wrapper changes their shapes; call it once `self.model` is built."""
        self._decayed = decayed_names(self.model, self.model.no_weight_decay())

    def _refuse_timed_budget(self, stage: str) -> None:
        """Raises if a budget of time would choose the size to train at."""
        check(
            self.hparams.get("budget_ms") is None or stage != "fit",
            "budget_ms is measured anew on each machine, so that it chooses no size to train at: give budget_gmacs or "
            "compressed_size",
        )

    def configure_model(self) -> None:
        """Shards the parameters where the strategy is FSDP2 (`ModelParallelStrategy`)."""
        if self.device_mesh is not None:
            shard_blocks(self, self.device_mesh["data_parallel"])

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups."""
        return parameter_groups(
            self.model.named_parameters(),
            self._decayed,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            layer_id=self.model.layer_id,
            top=self.model.num_layers - 1,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser, and its schedule for each step: a linear warm-up, then `schedule`."""
        groups = self._parameter_groups()
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(self.optimizer, groups, self.betas, self.momentum, scaled)
        self._group_options = [{k: g[k] for k in _GROUP_OPTIONS if k in g} for g in optimizer.param_groups]
        total, warmup = self._schedule_steps()
        factor = SCHEDULES[self.schedule](total, warmup, self.min_lr / self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_train_start(self) -> None:
        """Replaces the learning rate and decay of a resumed optimiser by those of this run."""
        for scheduler, optimizer in zip(self.trainer.lr_scheduler_configs, self.trainer.optimizers, strict=True):
            scheduler.scheduler.base_lrs = [options["lr"] for options in self._group_options]
            factor = scheduler.scheduler.lr_lambdas[0](scheduler.scheduler.last_epoch)
            for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
                group.update({**options, "initial_lr": options["lr"], "lr": options["lr"] * factor})
                for parameter in group["params"]:  # a fused optimiser counts its steps on the device, others do not
                    state = optimizer.state.get(parameter, {})
                    if "step" in state:
                        state["step"] = state["step"].to(parameter.device if group.get("fused") else "cpu")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout and stochastic depth from (seed, epoch, batch, rank), so that a resumed step draws the same."""
        numbers = (run_seed(), self.trainer.current_epoch, batch_idx, self.trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def configure_callbacks(self) -> list[Callback]:
        """In training: exact resume, and the moving average of the weights."""
        if self.trainer.state.fn != "fit":
            return []
        if self.ema_decay is None:
            return [ExactResume()]
        if isinstance(self.trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            raise ValueError("ema_decay does not work with sharded weights: set --model.ema_decay null or use ddp")
        average = WarmedUpAverage if self.ema_warmup else EMAWeightAveraging
        return [ExactResume(), average(decay=self.ema_decay)]

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
        """Adds what is needed to use the checkpoint without the training data: task, class names, pixels, scores.

        The optimiser's state is numbered by the place of each parameter in the model, which FSDP expects when it loads.
        """
        cls = unsharded_class(self)
        checkpoint[TASK] = f"{cls.__module__}.{cls.__qualname__}"
        names = getattr(self.trainer.datamodule, "class_names", None) or self.class_names
        if names:
            checkpoint[CLASS_NAMES] = [str(name) for name in names]
        pixels = Pixels.of_data(self.trainer.datamodule) or self.pixels
        if pixels is not None:
            checkpoint[PREPROCESSING] = pixels.as_dict()
        if scores := self._current_scores():
            checkpoint[SCORES] = scores
        sharded = isinstance(self.trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
        if "optimizer_states" in checkpoint and not sharded:
            places = {parameter: place for place, parameter in enumerate(self.parameters())}
            optimizers = zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True)
            checkpoint["optimizer_states"] = [by_place(state, optimizer, places) for state, optimizer in optimizers]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes class names and pixels from the checkpoint, and compares them with the data.

        Raises:
            ValueError: If training would go on with other classes.
        """
        contents = contents_of(checkpoint, self._checkpoint_name)
        if self._trainer is not None:
            compare_with_data(self, contents)
        self.class_names, self.pixels = contents.class_names, contents.pixels

    @property
    def _checkpoint_name(self) -> str:
        """The name in messages of the checkpoint that is being loaded."""
        return getattr(self._trainer, "ckpt_path", None) or "the checkpoint"

    def on_validation_start(self) -> None:
        """Notes the step of the weights that are about to be scored."""
        self._scored_step = None if self.trainer.sanity_checking else self.trainer.global_step

    def _current_scores(self) -> dict[str, float]:
        """The scores of the last validation, if it was of the present weights."""
        if self._scored_step is None or self._scored_step != self.trainer.global_step:
            return {}
        values = {name: float(v) for name, v in self.trainer.callback_metrics.items() if name.startswith("val/")}
        return {name: value for name, value in values.items() if isfinite(value)}

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


def by_place(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, places: dict[nn.Parameter, int]
) -> dict[str, Any]:
    """An optimiser's state, numbered by the place of each parameter in the model instead of in the groups.

    Args:
        state: The optimiser's `state_dict()`; torch loads either numbering.
        optimizer: The optimiser that the state is of.
        places: The place of every parameter of the model.
    """
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    number = {
        old: places[parameter]
        for saved, group in groups
        for old, parameter in zip(saved["params"], group["params"], strict=True)
    }
    return {
        "state": {number[old]: value for old, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [number[old] for old in group["params"]]} for group in state["param_groups"]
        ],
    }


def check(condition: bool, message: str) -> None:
    """Raises a ValueError with `message` where an option does not fit."""
    if not condition:
        raise ValueError(message)
