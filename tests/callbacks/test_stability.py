"""Non-finite steps are left out, counted, named and diagnosed; the curves of every layer are what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import ImageFolderDataModule
from lookupvit.callbacks import NonFiniteError, SkipNonFinite, StabilityMonitor
from lookupvit.callbacks.stability import attention_spread
from lookupvit.model.block import LookupViTBlock
from lookupvit.tasks import ClassificationTask


class Poison(Callback):
    """Makes one batch's images non-finite on one rank at each of ``steps``, and keeps the weights after every step."""

    def __init__(self, steps: set[int], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            batch[0][0, 0, 0, 0] = float("nan")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.model.parameters()]))


def task() -> ClassificationTask:
    seed_everything(0)
    args = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
    return ClassificationTask("lookupvit_tiny_patch16_224", 3, 32, compressed_size=(2, 2), args=args)


def fit(tree: Path, folder: Path, *callbacks: Callback, model: ClassificationTask | None = None, **options) -> Trainer:
    data = ImageFolderDataModule(str(tree), img_size=32, batch_size=2, num_workers=0)
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False, "logger": False}
    settings |= {"enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = Trainer(callbacks=list(callbacks), default_root_dir=folder, **{**settings, **options})
    trainer.fit(task() if model is None else model, data)
    return trainer


def test_a_bad_step_is_left_out_and_named(image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    poison, guard = Poison({2, 4}), SkipNonFinite()
    fit(image_tree, tmp_path, poison, guard)
    same = [torch.equal(a, b) for a, b in zip(poison.weights, poison.weights[1:], strict=False)]
    assert same == [False, True, False, True, False]  # steps 1 to 5
    assert (guard.skipped, guard.in_a_row) == (2, 0) and guard.state_dict() == {"skipped": 2, "in_a_row": 0}
    lines = [json.loads(line) for line in (tmp_path / "skipped_steps_rank0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and all(line["loss"] == "non-finite" for line in lines)
    assert all(len(line["samples"]) == 2 and Path(line["samples"][0]).is_file() for line in lines)
    printed = capsys.readouterr().err
    assert "step 2 left out on every rank: non-finite loss on rank 0, 1 in a row, 1 in all" in printed
    assert lines[0]["samples"][0] in printed


def test_the_run_stops_after_some_in_a_row(image_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .*up to step 3: the batch itself has") as error:
        fit(image_tree, tmp_path, Poison({1, 2, 3}), SkipNonFinite(patience=3))
    assert "\n" not in str(error.value) and "none was written" in str(error.value)


@pytest.mark.parametrize("way", ["weights", "forward", "backward"])
def test_the_diagnosis_names_the_first_layer(way: str, image_tree: Path, tmp_path: Path) -> None:
    model = task()
    layer = model.model.blocks[1].mlp
    name = next(name for name, module in model.named_modules() if module is layer)
    inner = next(name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear))
    if way == "weights":
        with torch.no_grad():
            layer.get_submodule(inner).weight[0, 0] = float("inf")
        want = f"the weights {name}.{inner}.weight are non-finite"
    elif way == "forward":
        layer.register_forward_hook(lambda module, args, output: output * float("inf"))
        want = f"first in the output of {name};"
    else:
        layer.register_full_backward_hook(
            lambda module, grads, _: tuple(None if g is None else g * torch.nan for g in grads)
        )
        want = "in the backward pass first in the gradient of model.blocks.1."
    with pytest.raises(NonFiniteError, match=want):
        fit(image_tree, tmp_path, SkipNonFinite(patience=1), model=model)


def test_the_curves_of_every_layer(image_tree: Path, tmp_path: Path) -> None:
    fit(image_tree, tmp_path, StabilityMonitor(every_n_steps=3), logger=TensorBoardLogger(tmp_path, "", "run"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("stability/")}
    layers = ("blocks.0", "blocks.1")
    assert tags == {f"stability/grad_norm/{layer}" for layer in ("embed", *layers, "norms", "heads")} | {
        f"stability/{what}/{layer}" for what in ("entropy", "max_logit") for layer in layers
    }
    assert len(events.Scalars("stability/entropy/blocks.0")) == 2
    assert all(0 < event.value <= 1 for event in events.Scalars("stability/entropy/blocks.1"))


def test_entropy_and_largest_score_by_hand() -> None:
    torch.manual_seed(0)
    block = LookupViTBlock(8, 2).eval()
    compressed, lookup = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    _, attention = block.cross.gather(compressed, lookup, need_attention=True)
    entropy, largest = attention_spread(block, compressed, lookup)
    rows = attention.reshape(-1, 5)
    by_hand = sum(torch.distributions.Categorical(probs=row).entropy() for row in rows) / len(rows)
    torch.testing.assert_close(entropy, by_hand / torch.log(torch.tensor(5.0)))
    torch.testing.assert_close(largest, block.cross.scores(compressed, lookup).abs().max())
    with torch.no_grad():
        block.cross.q.weight.zero_()
        block.cross.q.bias.zero_()
    assert float(attention_spread(block, compressed, lookup)[0]) == pytest.approx(1)
