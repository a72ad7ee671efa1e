"""The classification task: losses and gradients of every head, metrics, averaging of the weights, checkpoints."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lookupvit.tasks import ClassificationTask
from lookupvit.tasks.scores import new_samples

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
LOOKUP = {"name": "lookupvit_tiny_patch16_224", "num_classes": 7, "img_size": 32, "compressed_size": (2, 2)}
VIT = {"name": "vit_tiny_patch16_224", "num_classes": 7, "img_size": 32}


def make(args: dict | None = None, base: dict = LOOKUP, **options) -> ClassificationTask:
    seed_everything(0, verbose=False)
    return ClassificationTask(**{**base, "args": {**TINY, **(args or {})}, **options})


def loader(batches: int = 3, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, 3, 32, 32, generator=generator)
    targets = torch.randint(7, (batches * size,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=size)


def trainer(path: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=path, **{**quiet, "enable_checkpointing": False, **options})


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_training_loss_is_the_mean_of_the_heads(loss: str) -> None:
    task = make(loss=loss, label_smoothing=0.1)
    images, targets = next(iter(loader()))
    logits = task.model.forward_logits(task.model.forward_features(images))
    soft = 0.9 * F.one_hot(targets, 7) + 0.1 / 7
    if loss == "softmax":
        want = [-(soft * value.log_softmax(1)).sum(1).mean() for value in logits.values()]
    else:
        want = [
            F.binary_cross_entropy_with_logits(value, soft, reduction="none").sum(1).mean() for value in logits.values()
        ]
    assert set(logits) == {"compressed", "lookup"}
    torch.testing.assert_close(task.training_step((images, targets), 0), (want[0] + want[1]) / 2)
    torch.testing.assert_close(task.training_step((images, soft), 0) > 0, torch.tensor(True))


@pytest.mark.parametrize("base", [LOOKUP, VIT])
@pytest.mark.parametrize("head", ["both", "compressed", "lookup"])
def test_every_parameter_gets_a_gradient(base: dict, head: str) -> None:
    if base is VIT and head != "both":
        return  # a ViT has one head
    task = make({"head": head} if base is LOOKUP else {}, base)
    task.training_step(next(iter(loader())), 0).backward()
    without = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_metrics_equal_a_count_by_hand_for_each_head_and_the_mean(tmp_path: Path) -> None:
    task = make()
    data = loader()
    result = trainer(tmp_path).validate(task, data, verbose=False)[0]
    images, targets = data.dataset.tensors
    with torch.no_grad():
        logits = task.eval().head_logits(images)
    logits["mean"] = (logits["compressed"] + logits["lookup"]) / 2
    for head, value in logits.items():
        suffix = "" if head == "mean" else f"_{head}"
        ranks = (value > value.gather(1, targets[:, None])).sum(1)
        assert result[f"val/top1{suffix}"] == pytest.approx((ranks < 1).float().mean().item())
        assert result[f"val/top5{suffix}"] == pytest.approx((ranks < 5).float().mean().item())
    want = (F.cross_entropy(logits["compressed"], targets) + F.cross_entropy(logits["lookup"], targets)) / 2
    assert result["val/loss"] == pytest.approx(want.item(), rel=1e-5)


def test_one_head_alone_is_evaluated_on_request(tmp_path: Path) -> None:
    task = make(eval_head="compressed")
    result = trainer(tmp_path).test(task, loader(), verbose=False)[0]
    assert set(result) == {"test/loss", "test/top1", "test/top5"}
    images = loader().dataset.tensors[0]
    torch.testing.assert_close(task.eval()(images), task.model(images, head="compressed"))


def test_repeats_of_a_distributed_sampler_are_not_counted() -> None:
    data = TensorDataset(torch.arange(11))
    seen = []
    for rank in range(4):
        part = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 4, rank, shuffle=False))
        for i, (batch,) in enumerate(part):
            seen += batch[: new_samples(part, i, len(batch), rank)].tolist()
    assert sorted(seen) == list(range(11))  # the sampler itself hands out 12
    assert new_samples(DataLoader(data, batch_size=2), 5, 1, 0) == 1


class Weights(Callback):
    """Keeps the raw weights after each step, and the weights that validation sees."""

    def __init__(self) -> None:
        self.raw: list[torch.Tensor] = []
        self.evaluated: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.raw.append(pl_module.model.heads["lookup"].fc.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.evaluated = pl_module.model.heads["lookup"].fc.weight.detach().clone()


def test_averaged_weights_are_evaluated_and_saved(tmp_path: Path) -> None:
    task, weights = make(ema_decay=0.6, lr=1e-2), Weights()
    run = trainer(tmp_path, max_epochs=1, callbacks=[weights], num_sanity_val_steps=0)
    run.fit(task, loader(), loader(1))
    average = weights.raw[0]  # the average starts at the first step's weights
    for raw in weights.raw[1:]:
        average = 0.6 * average + 0.4 * raw
    torch.testing.assert_close(weights.evaluated, average)
    assert not torch.allclose(average, weights.raw[-1])
    torch.testing.assert_close(task.model.heads["lookup"].fc.weight.detach(), average)  # after the fit


def test_the_average_s_decay_warms_up(tmp_path: Path) -> None:
    task, weights = make(ema_decay=0.3, ema_warmup=True, lr=1e-2), Weights()
    run = trainer(tmp_path, max_epochs=1, callbacks=[weights], num_sanity_val_steps=0)
    run.fit(task, loader(5), loader(1))
    average = weights.raw[0]
    for n, raw in enumerate(weights.raw[1:], start=1):
        decay = {1: 2 / 11, 2: 3 / 12}.get(n, 0.3)  # 4 / 13 is more than 0.3
        average = decay * average + (1 - decay) * raw
    torch.testing.assert_close(weights.evaluated, average)
    torch.testing.assert_close(task.model.heads["lookup"].fc.weight.detach(), average)


def test_a_warmed_up_average_resumes_exactly(tmp_path: Path) -> None:
    ends = []
    for resume in (None, tmp_path / "epoch=0.ckpt"):
        task = make(lr=1e-2, ema_decay=0.999, ema_warmup=True)
        every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
        run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[every])
        run.fit(task, loader(), ckpt_path=resume, weights_only=True)
        ends.append(torch.load(tmp_path / "epoch=1.ckpt", weights_only=True))
    assert ends[0]["averaging_state"]["n_averaged"] == ends[1]["averaging_state"]["n_averaged"] == 6
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, ends[1][part][name]) for name, value in ends[0][part].items())


def test_dropout_s_seed_is_of_seed_epoch_batch_and_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the four changes what is dropped; none of them leaves it as it was."""
    task = make()
    drawn = {}
    for numbers in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 0)):
        seed, epoch, batch, rank = numbers
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        task._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        task.on_train_batch_start(None, batch)
        drawn[numbers] = torch.rand(4)
        torch.manual_seed(9)
        task.on_train_batch_start(None, batch)
        assert torch.equal(torch.rand(4), drawn[numbers])
    values = list(drawn.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_checkpoint_loads_as_plain_data_and_gives_the_same_logits(tmp_path: Path) -> None:
    task = make({"reuse": "renormalize"}, lr=1e-2)
    run = trainer(tmp_path, max_steps=2, enable_checkpointing=True)
    run.fit(task, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["args"]["reuse"] == "renormalize"
    assert checkpoint["task"] == "lookupvit.tasks.classification.ClassificationTask"
    again = ClassificationTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    images = loader().dataset.tensors[0]
    torch.testing.assert_close(again.eval()(images), task.eval()(images))


def fit_steps(path: Path, stop: int, resume: Path | None = None, **options) -> ClassificationTask:
    task = make(args={"drop_rate": 0.0}, lr=1e-2, warmup_steps=2, **options)
    run = trainer(path, max_epochs=3, limit_train_batches=3)
    run.fit_loop.epoch_loop.max_steps = stop if stop < 9 else -1
    run.fit(task, loader(), ckpt_path=resume, weights_only=True)
    run.save_checkpoint(path / f"step{stop}.ckpt")
    return task


def test_resume_at_an_epoch_end_is_exact(tmp_path: Path) -> None:
    whole = fit_steps(tmp_path, 9)
    fit_steps(tmp_path, 3)
    rest = fit_steps(tmp_path, 9, resume=tmp_path / "step3.ckpt")
    for (name, a), b in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_changed_learning_rate_and_decay_win_on_resume(tmp_path: Path) -> None:
    fit_steps(tmp_path, 3)
    task = make(lr=0.5, weight_decay=0.25, warmup_steps=2)
    seen: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(tmp_path, max_epochs=3, callbacks=[Rates()])
    run.fit(task, loader(), ckpt_path=tmp_path / "step3.ckpt", weights_only=True)
    cosine = 0.5 * (1 + torch.cos(torch.pi * (torch.arange(3, 9) - 2) / 7))  # 9 steps, 2 of them warm-up
    assert seen == pytest.approx((0.5 * cosine).tolist())
    assert [group["weight_decay"] for group in run.optimizers[0].param_groups] == [0.0, 0.25]


def test_clipping_works_with_fused_adamw_in_bfloat16(tmp_path: Path) -> None:
    norms: list[float] = []

    class Norms(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

    task = make(loss="sigmoid", head_bias=-3.0)
    assert task.model.heads["lookup"].fc.bias.tolist() == [-3.0] * 7
    options = {"max_steps": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.125, "callbacks": [Norms()]}
    run = trainer(tmp_path, **options)
    run.fit(task, loader())
    assert norms == pytest.approx([0.125, 0.125], rel=1e-4)


def test_compiled_model_keeps_its_parameter_names(tmp_path: Path) -> None:
    task = make(compile=True)
    task.setup("fit")
    assert not [name for name in task.state_dict() if "_orig_mod" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss 'hinge' is unknown: choose one of softmax, sigmoid"),
        ({"label_smoothing": 1.5}, "label_smoothing 1.5 is not in"),
        ({"min_lr": 1.0}, "min_lr 1.0 and lr 0.001"),
        ({"layer_decay": 0.0}, "layer_decay 0.0"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"ema_warmup": True}, "ema_warmup needs an average"),
        ({"warmup_epochs": 1, "warmup_steps": 1}, "set one of them to 0"),
        (
            {"eval_head": "pooled"},
            "eval_head 'pooled' does not exist: lookupvit_tiny_patch16_224 has compressed, lookup",
        ),
        ({"name": "lookupvit_tinny_patch16_224"}, "did you mean lookupvit_tiny_patch16_224"),
        ({"compressed_size": (9, 9)}, r"\(9, 9\) does not fit the lookup grid \(4, 4\)"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_a_warm_up_in_epochs(tmp_path: Path) -> None:
    seen: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(tmp_path, max_epochs=2, callbacks=[Rates()]).fit(make(lr=0.3, warmup_epochs=1), loader())
    assert seen[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])  # a warm-up of one epoch: three steps
    with pytest.raises(ValueError, match=r"warmup_epochs needs --trainer\.max_epochs"):
        trainer(tmp_path, max_steps=2, max_epochs=-1).fit(make(warmup_epochs=1), loader())
