"""Skips steps with a non-finite loss or gradient on every rank, and stops a run that has too many in a row."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lookupvit.callbacks.flags import Later, any_rank
from lookupvit.writing import say

_NAMED = 4  # samples in a printed line; the file has all of them


class NonFiniteError(ValueError):
    """Too many steps in a row without a finite loss and gradient."""


@dataclass(frozen=True)
class _Step:
    """A step whose two flags are on their way to the host: skipped on all ranks, and non-finite loss on this rank."""

    number: int
    batches: list[int]
    flags: Later


class SkipNonFinite(Callback):
    """Skips an optimiser step whose loss or gradient is not finite on any rank, so that the weights stay finite.

    A skipped step counts for the schedule and the drawn compressed sizes; weights and the optimiser's moments stay as
    they are. It is printed, counted in `train/skipped_steps`, and written to `skipped_steps_rankR.jsonl` in the run's
    folder, with the files of its batch where the data name them.

    A fused optimiser skips the step on the device (by its `found_inf`), so the host waits for nothing: it learns of a
    skipped step when the next one is ready, or when the epoch ends. Any other optimiser waits for the host. A gradient
    scaler (`16-mixed`) itself skips steps whose gradients overflow, and lowers its scale. Such a step counts here only
    if the loss is not finite, or if the scale is below 1.

    Args:
        patience: Steps in a row after which the run stops.

    Raises:
        NonFiniteError: After `patience` steps in a row; the message says which layer was the first.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self._bad_loss: Tensor | None = None
        self._batches: list[int] = []
        self._batch: Any = None
        self._pending: _Step | None = None

    def state_dict(self) -> dict[str, int]:
        """The counts, with the last step's."""
        if self._pending is None:
            return {"skipped": self.skipped, "in_a_row": self.in_a_row}
        left_out = self._pending.flags.read()[0]
        return {"skipped": self.skipped + left_out, "in_a_row": (self.in_a_row + 1) * left_out}

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
        """Decides on all ranks together whether to skip the step."""
        self._report_pending(trainer, pl_module)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # a sum is finite only if all of it is (short of an overflow, which is as good a reason to leave it out)
        sums = torch._foreach_norm([_local(gradient) for gradient in gradients])
        bad = ~torch.isfinite(torch.stack(sums).sum())
        own_loss = torch.zeros_like(bad) if self._bad_loss is None else self._bad_loss
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1:
            bad = own_loss
        left_out = any_rank((own_loss | bad).float())
        flags = Later(torch.stack([left_out, own_loss.float()]))
        self._pending = _Step(trainer.global_step, self._batches, flags)
        self._bad_loss, self._batches = None, []
        if scaler is not None:  # it has seen the gradients already, but not a non-finite loss
            for found in scaler._found_inf_per_device(optimizer).values():
                found.copy_(torch.maximum(found, left_out))
        elif _skips_on_device(optimizer):
            optimizer.found_inf = left_out
        elif flags.read()[0]:
            self._report_pending(trainer, pl_module)  # it may look at the gradients
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # every optimiser of torch passes over such a parameter
        if self.in_a_row + 1 >= self.patience:  # the diagnosis needs this step's gradients
            self._report_pending(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Releases the batch."""
        self._batch = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the last step, while its batches still have their names."""
        self._report_pending(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Reports the last step, which a signal may have followed."""
        self._report_pending(trainer, pl_module, log=False)

    def _report_pending(self, trainer: Trainer, pl_module: LightningModule, log: bool = True) -> None:
        """Counts and reports the pending step, if there is one and it was skipped."""
        step, self._pending = self._pending, None
        if step is None:
            return
        left_out, own_loss = step.flags.read()
        if not left_out:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        self._report(trainer, step, own_loss)
        if log and self.in_a_row >= self.patience:
            self._stop(trainer, pl_module, step)
        if log:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def _report(self, trainer: Trainer, step: _Step, own_loss: bool) -> None:
        samples = self._samples(trainer, step)
        folder = trainer.log_dir or trainer.default_root_dir
        line = {"step": step.number, "loss": "non-finite" if own_loss else "finite", "samples": samples}
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"skipped_steps_rank{trainer.global_rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if own_loss or trainer.is_global_zero:
            what = "loss" if own_loss else "gradient (or another rank's loss)"
            shown = ", ".join(samples[:_NAMED]) + (f" and {len(samples) - _NAMED} more" * (len(samples) > _NAMED))
            say(
                f"step {step.number} left out on every rank: non-finite {what} on rank {trainer.global_rank}, "
                f"{self.in_a_row} in a row, {self.skipped} in all{'; samples: ' if shown else ''}{shown}",
                error=True,
            )

    def _samples(self, trainer: Trainer, step: _Step) -> list[str]:
        """Files of the step's batches on this rank; none where the loader cannot tell."""
        loader = trainer.train_dataloader
        names = getattr(loader, "names_of_batch", None)
        return [name for batch in step.batches for name in names(batch)] if names else []

    def _stop(self, trainer: Trainer, pl_module: LightningModule, step: _Step) -> None:
        cause = diagnose(pl_module, self._batch, step.batches[-1])
        best = next(
            (c.last_good for c in trainer.checkpoint_callbacks if getattr(c, "last_good", "")), "none was written"
        )
        raise NonFiniteError(
            f"{self.in_a_row} steps in a row had a non-finite loss or gradient, up to step {step.number}: "
            f"{cause}; last good checkpoint: {best}; resume from it with a lower --model.lr, or with "
            "--trainer.precision 32-true"
        )


def _skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step reads `found_inf`, as torch's fused optimisers do.

    Not their first: SGD's would leave its new momentum without a value.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False) and bool(optimizer.state)


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
