"""Steps with a non-finite loss or gradient: left out on every rank, counted, named, and diagnosed when they go on."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn

_NAMED = 4  # samples in a printed line; the file has all of them


class NonFiniteError(ValueError):
    """Too many steps in a row without a finite loss and gradient."""


class SkipNonFinite(Callback):
    """Leaves out an optimiser step whose loss or gradient is not finite on any rank: the weights stay good.

    The step counts (schedule and compressed sizes go on); weights and the optimiser's moments are left as they are.
    Each is printed, counted in ``train/skipped_steps``, and written to ``skipped_steps_rankR.jsonl`` in the run's
    folder with the files of the batch, where the data tell them.

    Args:
        patience: Steps in a row after which the run stops.

    Raises:
        NonFiniteError: After ``patience`` steps in a row; the message says which layer was the first.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self._bad_loss: Tensor | None = None
        self._batches: list[int] = []
        self._batch: Any = None

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes the counts."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes which batches make up the step."""
        self._batch = batch
        self._batches.append(batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes the loss, without waiting for it."""
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Decides on all ranks together; takes the gradients away from a step that is left out."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # a sum is finite only if all of it is (short of an overflow, which is as good a reason to leave it out)
        sums = torch._foreach_norm([_local(gradient) for gradient in gradients])
        bad = ~torch.isfinite(torch.stack(sums).sum())
        own_loss = bool(self._bad_loss) if self._bad_loss is not None else False
        skip = own_loss or bool(bad)
        if trainer.world_size > 1:
            skip = trainer.strategy.reduce_boolean_decision(skip, all=False)
        if not skip:
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            self._tell(trainer, own_loss)
            if self.in_a_row >= self.patience:
                self._stop(trainer, pl_module)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # every optimiser of torch passes over such a parameter
            pl_module.log("train/skipped_steps", float(self.skipped))
        self._bad_loss = None
        self._batches.clear()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Lets the batch go."""
        self._batch = None

    def _tell(self, trainer: Trainer, own_loss: bool) -> None:
        samples = self._samples(trainer)
        folder = trainer.log_dir or trainer.default_root_dir
        line = {"step": trainer.global_step, "loss": "non-finite" if own_loss else "finite", "samples": samples}
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"skipped_steps_rank{trainer.global_rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if own_loss or trainer.is_global_zero:
            what = "loss" if own_loss else "gradient (or another rank's loss)"
            shown = ", ".join(samples[:_NAMED]) + (f" and {len(samples) - _NAMED} more" * (len(samples) > _NAMED))
            Console(stderr=True).print(
                f"step {trainer.global_step} left out on every rank: non-finite {what} on rank {trainer.global_rank}, "
                f"{self.in_a_row} in a row, {self.skipped} in all{'; samples: ' if shown else ''}{shown}",
                soft_wrap=True,
                highlight=False,
            )

    def _samples(self, trainer: Trainer) -> list[str]:
        """Files of the step's batches on this rank; none where the loader cannot tell."""
        loader = trainer.train_dataloader
        names = getattr(loader, "names_of_batch", None)
        return [name for batch in self._batches for name in names(batch)] if names else []

    def _stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = diagnose(pl_module, self._batch, self._batches[-1])
        best = next(
            (c.last_good for c in trainer.checkpoint_callbacks if getattr(c, "last_good", "")), "none was written"
        )
        raise NonFiniteError(
            f"{self.in_a_row} steps in a row had a non-finite loss or gradient, up to step {trainer.global_step}: "
            f"{found}; last good checkpoint: {best}; resume from it with a lower --model.lr, or with "
            "--trainer.precision 32-true"
        )


def diagnose(task: LightningModule, batch: Any, batch_idx: int) -> str:
    """Which layer is the first to give a non-finite value: its weights, else its output, else its gradient.

    Args:
        task: The task, with the gradients of the bad step still there.
        batch: The batch of the bad step.
        batch_idx: Its index in the epoch.
    """
    for name, parameter in task.named_parameters():
        if not torch.isfinite(_local(parameter.detach())).all():
            return f"the weights {name} are non-finite themselves"
    for tensor in batch if isinstance(batch, (tuple, list)) else [batch]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return "the batch itself has non-finite values"
    bad = [
        name
        for name, parameter in task.named_parameters()
        if parameter.grad is not None and not torch.isfinite(_local(parameter.grad)).all()
    ]
    first: list[str] = []
    with _watched(task, first), _no_logging(task), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        task.on_train_batch_start(batch, batch_idx)  # the same dropout as in the step
        loss = task.training_step(batch, batch_idx)
    if first:
        return f"first in the output of {first[0]}"
    if isinstance(loss, Tensor) and not torch.isfinite(loss).all():
        return "first in the loss: every layer's output is finite"
    if bad:
        return (
            f"the loss is finite; in the backward pass first in the gradient of {bad[-1]} (and of {len(bad) - 1} more)"
        )
    return "not on this rank, and no more when the step is run again"


@contextmanager
def _watched(task: nn.Module, first: list[str]):
    """Appends the name of every module whose output is not finite, inner before outer, in the order they ran."""

    def watch(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if any(isinstance(t, Tensor) and not torch.isfinite(t).all() for t in tensors):
                first.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in task.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _no_logging(task: LightningModule):
    names = ("log", "log_dict")
    for name in names:
        object.__setattr__(task, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(task, name)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
