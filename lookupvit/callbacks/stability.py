"""Curves that warn before training diverges: gradient norm, attention entropy and largest logit of each layer."""

from math import log
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lookupvit.model.block import LookupViTBlock

_IMAGES = 2  # of a batch; enough for a curve


class StabilityMonitor(Callback):
    """Writes, every `every_n_steps` optimiser steps, three numbers per layer to the logger.

    * `stability/grad_norm/LAYER`: norm of the gradient, before clipping;
    * `stability/entropy/LAYER`: mean entropy of the gather attention over the largest possible one: 0 looks at one
      lookup token, 1 at all of them alike;
    * `stability/max_logit/LAYER`: largest absolute score before the softmax.

    The last two are measured on the first two samples of rank 0, at the compressed size of the step. They are left out
    under FSDP, where no rank has whole layers, and under `compile`.

    Args:
        every_n_steps: Optimiser steps between two points.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._handles: list[Any] = []
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.global_step + 1) % self.every_n_steps == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Looks into the blocks during a step that is due."""
        sharded = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
        if (
            not self._due(trainer)
            or not trainer.is_global_zero
            or sharded
            or getattr(pl_module, "compile_model", False)
        ):
            return
        self._seen = {}
        for name, module in pl_module.model.named_modules():
            if isinstance(module, LookupViTBlock):
                self._handles.append(module.register_forward_pre_hook(self._look(name)))

    def _look(self, name: str) -> Any:
        def hook(block: LookupViTBlock, args: tuple[Any, ...]) -> None:
            if name not in self._seen:  # of the sandwich rule's passes, the first
                self._seen[name] = attention_spread(block, args[0][:_IMAGES], args[1][:_IMAGES])

        return hook

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Writes the gradient norms, and what was seen of the attention."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self._due(trainer):
            return
        values = {f"stability/grad_norm/{layer}": norm for layer, norm in layer_gradient_norms(pl_module.model).items()}
        for name, (entropy, largest) in self._seen.items():
            values |= {f"stability/entropy/{name}": entropy, f"stability/max_logit/{name}": largest}
        self._seen = {}
        if trainer.is_global_zero:
            numbers = {name: float(value) for name, value in values.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)


@torch.no_grad()
def attention_spread(block: LookupViTBlock, compressed: Tensor, lookup: Tensor) -> tuple[Tensor, Tensor]:
    """The gather attention of one block: its mean entropy over the largest possible one, and its largest score.

    Args:
        block: The block.
        compressed: `(B, M, D)` that enter it.
        lookup: `(B, N, D)` that enter it.
    """
    scores = block.cross.scores(compressed, lookup).float()  # (B, H, M, N)
    entropy = -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
    return entropy / max(log(scores.shape[-1]), 1e-12), scores.abs().max()


def layer_gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Norm of the gradient of each layer: the embedding, each block, the rest. Collective where they are sharded."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            first, *rest = name.replace("_fsdp_wrapped_module.", "").split(".")
            layer = f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first
            parts.setdefault(layer, []).append(parameter.grad)
    norms = {layer: torch.nn.utils.get_total_norm(gradients) for layer, gradients in parts.items()}
    return {layer: norm.full_tensor() if hasattr(norm, "full_tensor") else norm for layer, norm in norms.items()}
