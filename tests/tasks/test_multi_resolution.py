"""Many compressed sizes in one model: training, the sandwich rule, evaluation at every size in one pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tasks.test_classification import LOOKUP, TINY, VIT, loader, make, trainer

from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cascade.confidence import confidence
from lookupvit.analysis.cost import count_macs
from lookupvit.tasks.sampling import draw_size, sandwich_sizes

SIZES = [[1, 2], [2, 2], [3, 3]]
MANY = {**{key: value for key, value in LOOKUP.items() if key != "compressed_size"}, "compressed_sizes": SIZES}


class Recorder(Callback):
    """Writes the number of compressed tokens of each batch to a file for each rank."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
        sizes = pl_module.training_sizes(trainer.global_step)
        with open(self.folder / f"rank{trainer.global_rank}.txt", "a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step} {sizes}\n")


def test_each_step_trains_at_its_own_size_and_the_largest_is_the_model_s_own(monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    task = make(base=MANY)
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")  # make() seeds with 0
    assert task.model.compressed_size == (3, 3)
    assert [task.training_sizes(step) for step in range(20)] == [
        [draw_size([(1, 2), (2, 2), (3, 3)], None, 3, step)] for step in range(20)
    ]
    images, targets = next(iter(loader()))
    size = task.training_sizes(0)[0]
    logits = task.model.forward_logits(task.model.forward_features(images, size))
    want = torch.stack([F.cross_entropy(value, targets) for value in logits.values()]).mean()
    torch.testing.assert_close(task.training_step((images, targets), 0), want)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_sandwich_s_loss_worked_out_by_hand(loss: str) -> None:
    task = make(base=MANY, sandwich=True, distill_weight=0.3, loss=loss)
    images, targets = next(iter(loader()))
    large, small, middle = sandwich_sizes([(1, 2), (2, 2), (3, 3)], None, 0, 0)
    assert (large, small, middle) == ((3, 3), (1, 2), (2, 2))

    def of(size: tuple[int, int]) -> list[torch.Tensor]:
        return list(task.model.forward_logits(task.model.forward_features(images, size)).values())

    def against(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if loss == "softmax":
            return -(target * logits.log_softmax(1)).sum(1).mean()
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()

    hard = F.one_hot(targets, 7).float()
    mean = ((of(large)[0] + of(large)[1]) / 2).detach()
    teacher = mean.softmax(1) if loss == "softmax" else mean.sigmoid()
    want = sum(against(value, hard) for value in of(large)) / 2
    for size in (small, middle):
        want = want + sum(0.7 * against(v, hard) + 0.3 * against(v, teacher) for v in of(size)) / 2
    got = task.training_step((images, targets), 0)
    torch.testing.assert_close(got, want / 3)
    got.backward()
    assert [name for name, p in task.named_parameters() if p.grad is None] == []


def test_evaluation_reports_every_size_in_one_pass(tmp_path: Path, monkeypatch) -> None:
    task = make(base=MANY)
    data = loader()
    embedded = []
    embed = task.model.embed_images
    monkeypatch.setattr(task.model, "embed_images", lambda images: (embedded.append(len(images)), embed(images))[1])
    result = trainer(tmp_path).validate(task, data, verbose=False)[0]
    assert embedded == [4, 4, 4]  # each batch once, for three sizes
    images, targets = data.dataset.tensors
    with torch.no_grad():
        for size in SIZES:
            logits = task.eval().head_logits(images, tuple(size))
            mean = (logits["compressed"] + logits["lookup"]) / 2
            at = f"@{size[0]}x{size[1]}"
            assert result[f"val/top1{at}"] == pytest.approx((mean.argmax(1) == targets).float().mean().item())
            if size == [3, 3]:
                assert result["val/top1"] == result["val/top1@3x3"]
                assert result["val/top5"] == result["val/top5@3x3"]
            else:
                compressed = (logits["compressed"].argmax(1) == targets).float().mean().item()
                assert result[f"val/top1_compressed{at}"] == pytest.approx(compressed)
                losses = [F.cross_entropy(value, targets).item() for value in logits.values()]
                assert result[f"val/loss{at}"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_a_single_size_model_is_evaluated_at_others_on_request(tmp_path: Path) -> None:
    task = make(eval_compressed_sizes=[[1, 1], [4, 4]])
    names = set(trainer(tmp_path).validate(task, loader(), verbose=False)[0])
    assert {"val/top1", "val/top1@1x1", "val/top1@4x4", "val/top5_lookup@4x4"} <= names
    assert "val/top1@2x2" not in names  # the main size has the plain names


def run(folder: Path, steps: int, ckpt_path: Path | None = None, **options) -> list[str]:
    """Trains and returns a line for each micro-batch: its optimiser step and its sizes."""
    folder.mkdir()
    small = {**TINY, "embed_dim": 8, "depth": 1, "num_heads": 1}
    data = torch.utils.data.DataLoader(loader(batches=75).dataset, batch_size=1)
    options.setdefault("callbacks", []).append(Recorder(str(folder)))
    trainer(folder, max_steps=steps, max_epochs=None, logger=False, **options).fit(
        make(small, MANY), data, ckpt_path=ckpt_path
    )
    return (folder / "rank0.txt").read_text().splitlines()


def test_a_run_resumed_at_step_250_draws_the_remaining_sizes(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=250, save_top_k=-1)
    whole = run(tmp_path / "whole", 500, callbacks=[keep], enable_checkpointing=True)
    assert len(whole) == 500 and len({line.split(" ", 1)[1] for line in whole}) == 3
    assert run(tmp_path / "rest", 500, tmp_path / "step=250.ckpt") == whole[250:]


def test_the_micro_batches_of_a_step_share_its_size(tmp_path: Path) -> None:
    lines = run(tmp_path / "run", 20, accumulate_grad_batches=2)
    assert len(lines) == 40 and lines[::2] == lines[1::2] and len(set(lines)) == 20


def test_two_processes_draw_the_same_sizes(image_tree: Path, tmp_path: Path) -> None:
    """From the command line, 500 steps; PYTHONPATH lets the second process find the recorder."""
    argv = ["fit", "--model", "ClassificationTask", "--data", "ImageFolderDataModule", "--data.root", str(image_tree)]
    argv += ["--data.img_size", "16", "--data.batch_size", "6", "--data.num_workers", "0", "--data.cache", "false"]
    argv += ["--model.name", "lookupvit_tiny_patch4_32", "--model.compressed_sizes", "[[1,2],[2,2],[3,3]]"]
    argv += ["--model.args", "{embed_dim: 8, depth: 1, num_heads: 1}", "--output_dir", str(tmp_path)]
    argv += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    argv += ["--trainer.max_steps", "500", "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    argv += ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    argv += ["--trainer.enable_progress_bar", "false", "--trainer.callbacks+=tasks.test_multi_resolution.Recorder"]
    argv += [f"--trainer.callbacks.folder={tmp_path}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "lookupvit", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr
    ranks = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert ranks[0] == ranks[1] and len(ranks[0]) == 500
    assert ranks[0] == [f"{step} {[draw_size([(1, 2), (2, 2), (3, 3)], None, 0, step)]}" for step in range(500)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": VIT, "compressed_sizes": SIZES}, "has no compressed tokens"),
        ({"base": {**MANY, "compressed_sizes": [[2, 2], [5, 5]]}}, "does not fit the lookup grid"),
        ({"sandwich": True}, "need compressed_sizes"),
        ({"base": MANY, "distill_weight": 1.5}, r"distill_weight 1.5 is not in \[0, 1\]"),
        ({"eval_compressed_sizes": [[2, 2, 2]]}, "has 3 axes"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_a_budget_chooses_the_size() -> None:
    task = make(base=MANY)
    costs = {side: count_macs(task.model, 32, (side, side)) / 1e9 for side in (2, 3)}
    for budget, side in ((costs[2] * 1.001, 2), (costs[3] * 1.001, 3), (costs[3] * 0.999, 2)):
        assert make(base=MANY, budget_gmacs=budget).model.compressed_size == (side, side)
    with pytest.raises(ValueError, match="budget of 1e-06 GMACs is too small"):
        make(base=MANY, budget_gmacs=1e-6)


def test_predict_by_a_cascade(tmp_path: Path) -> None:
    images = loader().dataset.tensors[0]
    plain = make(base=MANY).eval()
    sure = plain.head_logits(images, (1, 2))
    answers = (sure["compressed"] + sure["lookup"]) / 2
    sixth, seventh = confidence(answers).sort(descending=True).values[5:7].tolist()
    assert sixth - seventh > 1e-5  # no tie that rounding decides: a threshold in float32 is not the float64 one
    Cascade(((1, 2), (3, 3)), ((sixth + seventh) / 2,)).save(tmp_path / "cascade.json")
    task = make(base=MANY, cascade=str(tmp_path / "cascade.json")).eval()
    with torch.no_grad():
        out = task.predict_step((images, [str(i) for i in range(12)]), 0)
    assert out["sizes"].count((1, 2)) == 6 and out["sizes"].count((3, 3)) == 6
    on_the_edge = Cascade(((1, 2), (3, 3)), (sixth,)).decide({(1, 2): answers, (3, 3): answers})[1]
    assert on_the_edge.tolist().count(0) == 6  # what equals the threshold is not below it
    for i, size in enumerate(out["sizes"]):
        logits = plain.head_logits(images[i : i + 1], size)
        want = ((logits["compressed"] + logits["lookup"]) / 2).softmax(1).sort(descending=True)
        torch.testing.assert_close(out["probabilities"][i], want.values[0, :5], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="cascade is for predict, not for fit"):
        trainer(tmp_path, max_epochs=1).fit(task, loader())
