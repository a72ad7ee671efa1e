"""Two processes of one machine equal one with the same global batch: weights, validation, skipped steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callbacks.test_stability import Poison
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy

from datamodules import ImageFolderDataModule
from lookupvit.callbacks import SkipNonFinite
from lookupvit.cli.main import main
from lookupvit.tasks import ClassificationTask

pytestmark = pytest.mark.own_process


class Keep(Callback):
    """Saves the weights as they are in the ranks: what Lightning hands back from forked ones is rounded to float32."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.model.state_dict(), self.path)


MODEL = {"compressed_sizes": [[1, 1], [2, 2], [3, 3]], "optimizer": "sgd", "lr": 0.1, "eval_head": None}
ARGS = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}


def fit(
    tree: Path,
    folder: Path,
    devices: int,
    batch_size: int,
    *callbacks: Callback,
    model: dict | None = None,
    **data: object,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights and validation figures after an epoch in float64; several ranks are forked from this process."""
    seed_everything(0)
    model = {**MODEL, **(model or {})}
    task = ClassificationTask(
        model.pop("name", "lookupvit_tiny_patch16_224"), 3, 32, args={**ARGS, **model.pop("args", {})}, **model
    )
    images = ImageFolderDataModule(str(tree), img_size=32, batch_size=batch_size, num_workers=0, **data)
    # Never find_unused_parameters: DDP raises in the second step if any parameter got no gradient in the first.
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=False) if devices > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=1,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, Keep(folder / f"{devices}.pt")],
    )
    trainer.fit(task, images)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return torch.load(folder / f"{devices}.pt", weights_only=True), figures


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"sandwich": True},
        {"args": {"head": "compressed"}, "eval_compressed_sizes": [[2, 2]]},
        {"args": {"head": "lookup"}},
        {"name": "vit_tiny_patch16_224", "compressed_sizes": None},
    ],
    ids=["both", "sandwich", "compressed", "lookup", "vit"],
)
def test_two_ranks_train_and_score_as_one(model: dict, image_tree: Path, tmp_path: Path) -> None:
    one, two = (fit(image_tree, tmp_path, ranks, 4 // ranks, model=model) for ranks in (1, 2))
    assert one[0].keys() == two[0].keys() and one[1].keys() == two[1].keys() and "val/top1" in one[1]
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=0, atol=1e-6)
    assert two[1] == pytest.approx(one[1], abs=1e-6)


def test_a_bad_batch_of_one_rank_is_left_out_on_both(image_tree: Path, tmp_path: Path) -> None:
    good, _ = fit(image_tree, tmp_path, 2, 2, SkipNonFinite(), Poison({0, 1, 2}, rank=1))
    seed_everything(0)
    start = ClassificationTask("lookupvit_tiny_patch16_224", 3, 32, args=ARGS, **MODEL).model.state_dict()
    assert all(torch.equal(value, start[name].double()) for name, value in good.items())
    lines = {rank: (tmp_path / f"skipped_steps_rank{rank}.jsonl").read_text().splitlines() for rank in (0, 1)}
    assert all(len(line) == 3 for line in lines.values())
    assert "non-finite" in lines[1][0] and '"loss": "finite"' in lines[0][0]


CONFIGS = Path(__file__).parents[1] / "configs"
# The demos of the other two tasks, shrunk. Captions are of different lengths, so that the ranks' tokens are too.
DEMOS = {
    "video_joint": {"data.root": "motion", "data.train_per_class": 1, "data.val_per_class": 1, "data.frames": 8}
    | {"data.num_frames": 4, "model.compressed_size": [1, 2, 2]},
    "caption": {"data.root": "scenes", "data.train_images": 10, "data.val_images": 4, "model.warmup_epochs": 0}
    | {"model.compressed_size": [2, 2], "model.val_generation": {"method": "greedy", "max_length": 8}},
}
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def command(demo: str, folder: Path, name: str, batch_size: int, **options: object) -> list[str]:
    data = DEMOS[demo] | {"data.root": folder / str(DEMOS[demo]["data.root"])}
    args = TINY if demo.startswith("video") else {**TINY, "patch_size": 8}
    model = {"model.args": args, "model.optimizer": "sgd", "model.lr": 0.1, "model.warmup_epochs": 0}
    rest = {"data.batch_size": batch_size, "output_dir": folder, "name": name, "trainer.max_epochs": 1}
    given = {**data, **model, **rest, "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, **options}
    config = options.pop("config", None)
    argv = ["fit", "--config", str(CONFIGS / f"demo_{demo}.yaml")]
    argv += [] if config is None else ["--config", str(CONFIGS / "base" / f"{config}.yaml")]
    return argv + [f"--{key}={value}" for key, value in given.items() if key != "config"]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = folder / name / "version_0" / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("demo", DEMOS)
def test_the_demos_of_video_and_captions_on_two_ranks(demo: str, tmp_path: Path) -> None:
    """DDP from the command line to 1e-6 in float64, FSDP2 to 1e-5 in float32, as far as its strategy goes."""
    double = {"trainer.precision": "64-true"}
    assert main(command(demo, tmp_path, "one", 4, **double)) == 0
    ranks = {"config": "ddp", "trainer.devices": 2, "trainer.strategy.init_args.start_method": "fork"}
    assert main(command(demo, tmp_path, "ddp", 2, **ranks, **double)) == 0
    ranks = {"config": "fsdp2", "trainer.devices": 2, "trainer.strategy.init_args.data_parallel_size": 2}
    argv = [
        sys.executable,
        "-m",
        "lookupvit",
        *command(demo, tmp_path, "fsdp2", 2, **ranks, **{"trainer.precision": "32-true"}),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    want = weights(tmp_path, "one")
    for name, tolerance in (("ddp", 1e-6), ("fsdp2", 1e-5)):
        for key, value in weights(tmp_path, name).items():
            torch.testing.assert_close(value.double(), want[key].double(), rtol=0, atol=tolerance)
