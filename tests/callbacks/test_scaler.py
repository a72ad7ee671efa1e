"""float16 with a gradient scaler: overflows are the scaler's. And of any precision: good steps wait for nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.test_stability import Poison, fit, task
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode

from lookupvit.callbacks import LastCheckpoint, NonFiniteError, SkipNonFinite
from lookupvit.tasks import ClassificationTask


class Overflow(Callback):
    """Makes gradients overflow while the scale is above ``limit``, as float16's would; notes scales and weights."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.scales: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        if self.scales[-1] > self.limit:
            next(pl_module.model.parameters()).grad.fill_(torch.inf)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.model.parameters()]))


def half(scale: float) -> MixedPrecision:
    """16-mixed as Lightning sets it up on a GPU, here on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_scaler_owns_overflows(clip: float | None, image_tree: Path, tmp_path: Path) -> None:
    overflow, guard = Overflow(limit=300.0), SkipNonFinite(patience=2)
    trainer = fit(image_tree, tmp_path, overflow, guard, plugins=[half(1024.0)], gradient_clip_val=clip)
    assert overflow.scales == [1024.0, 512.0, 256.0, 256.0, 256.0, 256.0]  # halved by each overflow
    moved = [not torch.equal(a, b) for a, b in zip(overflow.weights, overflow.weights[1:], strict=False)]
    assert moved == [False, True, True, True, True]  # steps 1 to 5; 0 and 1 overflowed
    assert guard.skipped == 0 and not (tmp_path / "skipped_steps_rank0.jsonl").exists()
    assert all(not group["fused"] for group in trainer.optimizers[0].param_groups)


def test_a_bad_loss_beside_a_scaler_is_named(image_tree: Path, tmp_path: Path) -> None:
    poison, guard = Poison({2}), SkipNonFinite()
    fit(image_tree, tmp_path, poison, guard, plugins=[half(256.0)])
    same = [torch.equal(a, b) for a, b in zip(poison.weights, poison.weights[1:], strict=False)]
    assert same == [False, True, False, False, False] and guard.skipped == 1
    (line,) = (tmp_path / "skipped_steps_rank0.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2


def test_overflows_that_no_scale_helps_stop_the_run(image_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        fit(image_tree, tmp_path, Overflow(limit=0.0), SkipNonFinite(patience=3), plugins=[half(2.0)])


class HostReads(TorchDispatchMode):
    """Counts the values that the host asks a tensor for, each of which waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        HostReads.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def counted(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, its reads counted."""

    def inner(*args: Any) -> Any:
        with HostReads():
            return hook(*args)

    return inner


HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_good_step_waits_for_nothing(
    optimizer: str, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = (SkipNonFinite(), LastCheckpoint(tmp_path))
    for guard in guards:
        for name in HOOKS:
            monkeypatch.setattr(guard, name, counted(getattr(guard, name)))
    poison, HostReads.count = Poison({4}), 0
    model = task()
    model.optimizer = optimizer
    fit(image_tree, tmp_path, *guards, poison, model=model, enable_checkpointing=True)
    assert HostReads.count == 0
    same = [torch.equal(a, b) for a, b in zip(poison.weights, poison.weights[1:], strict=False)]
    assert same == [False, False, False, True, False] and guards[0].skipped == 1


def test_a_bad_first_step_leaves_sgds_momentum_good(image_tree: Path, tmp_path: Path) -> None:
    model: ClassificationTask = task()
    model.optimizer = "sgd"
    poison = Poison({0})
    trainer = fit(image_tree, tmp_path, poison, SkipNonFinite(), model=model)
    assert all(torch.isfinite(weights).all() for weights in poison.weights)
    assert all(state["momentum_buffer"].isfinite().all() for state in trainer.optimizers[0].state.values())
    assert not torch.equal(poison.weights[0], poison.weights[1])
