"""Exact resume and the signals, from the command line: a run cut anywhere ends with the weights of one that was not."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import MotionDataModule
from lookupvit.cli.main import main

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 3, log_every_n_steps: 1, enable_progress_bar: false, gradient_clip_val: 1.0}}
model:
  class_path: ClassificationTask
  init_args:
    name: lookupvit_tiny_patch16_224
    compressed_sizes: [[1, 1], [2, 2], [3, 3]]
    args: {{embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8}}
    drop_path_rate: 0.5
    ema_decay: 0.9
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 2, num_workers: 0, recipe: deit}}
save_every_n_steps: 1
output_dir: {output}
name: run
"""


class Cut(Callback):
    """Copies ``last.ckpt`` after each step into ``folder``; in optimiser step ``step`` it sends a signal."""

    def __init__(self, folder: str = "", step: int = -1, number: int = int(signal.SIGTERM)) -> None:
        self.folder, self.step, self.number = folder, step, number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._copy(trainer)
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(trainer)

    def _copy(self, trainer: Trainer) -> None:
        last = Path(trainer.log_dir) / "checkpoints" / "last.ckpt"
        if self.folder and last.is_file():
            shutil.copy(last, Path(self.folder) / f"{trainer.global_step}.ckpt")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, image_tree: Path) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "run.yaml").write_text(CONFIG.format(root=image_tree, output=folder))
    return folder / "run.yaml"


def fit(config: Path, name: str, *options: str, cut: dict[str, Any] | None = None) -> int:
    argv = ["fit", "--config", str(config), "--name", name, *options]
    if cut is not None:
        argv += ["--trainer.callbacks+=test_resume.Cut"]
        argv += [f"--trainer.callbacks.{key}={value}" for key, value in cut.items()]
    return main(argv)


def final(config: Path, name: str, version: int = 0) -> dict[str, Any]:
    return torch.load(config.parent / name / f"version_{version}" / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """The weights, their average and the optimiser's state, bit for bit."""
    assert got["global_step"] == want["global_step"] and got["epoch"] == want["epoch"]
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(value, got[part][key]) for key, value in want[part].items()), part
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (got, want)]
    for index, state in moments[1].items():
        assert all(torch.equal(value, moments[0][index][key]) for key, value in state.items())


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A folder with ``STEP.ckpt`` of an uninterrupted run of 18 steps in 3 epochs."""
    folder = config.parent / "steps"
    folder.mkdir()
    assert fit(config, "whole", cut={"folder": folder}) == 0
    assert final(config, "whole")["global_step"] == 18
    return folder


@pytest.mark.parametrize("step", [4, 6, 17])
def test_a_run_killed_after_any_step_goes_on_exactly(step: int, config: Path, whole: Path) -> None:
    """The file that a SIGKILL would have left: mid-epoch, or of step 6, at the end of an epoch."""
    assert fit(config, f"from{step}", "--ckpt_path", str(whole / f"{step}.ckpt")) == 0
    assert_same(final(config, f"from{step}"), final(config, "whole"))


def test_the_best_checkpoint_goes_on_exactly_too(config: Path, whole: Path) -> None:
    (best,) = (config.parent / "whole").glob("version_0/checkpoints/epoch*.ckpt")
    assert fit(config, "from_best", "--ckpt_path", str(best)) == 0
    if torch.load(best, weights_only=True)["global_step"] < 18:
        assert_same(final(config, "from_best"), final(config, "whole"))


@pytest.mark.parametrize(("step", "number"), [(8, signal.SIGTERM), (12, signal.SIGINT)])
def test_a_signal_saves_and_the_run_goes_on_in_its_folder(
    step: int, number: int, config: Path, whole: Path, capfd: pytest.CaptureFixture
) -> None:
    before = signal.getsignal(number)
    name = f"signal{step}"
    assert fit(config, name, "--save_every_n_steps=null", cut={"step": step, "number": int(number)}) == 75
    assert signal.getsignal(number) is before
    printed = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: saved" in printed and f"at step {step}; " in printed
    assert final(config, name)["global_step"] == step
    assert fit(config, name, "--ckpt_path", "last") == 0
    assert [path.name for path in (config.parent / name).iterdir()] == ["version_0"]
    assert_same(final(config, name), final(config, "whole"))


def test_accumulated_steps_are_not_cut_in_half(config: Path) -> None:
    options = ["--trainer.accumulate_grad_batches", "2", "--save_every_n_steps=null"]
    assert fit(config, "accumulated", *options) == 0
    assert fit(config, "halves", *options, cut={"step": 5}) == 75  # the signal comes in the first half of step 5
    assert fit(config, "halves", *options, "--ckpt_path", "last") == 0
    assert_same(final(config, "halves"), final(config, "accumulated"))


@pytest.mark.parametrize(("batch_size", "says"), [(3, "the global batch is 3, it was 2"), (2, None)])
def test_another_batch_size_goes_on_at_the_same_sample_and_says_so(
    batch_size: int, says: str | None, config: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    name, options = f"batch{batch_size}", ["--data.batch_size", str(batch_size), "--data.num_workers", "1"]
    assert fit(config, name, *options, "--ckpt_path", str(whole / "9.ckpt")) == 0
    printed = capsys.readouterr().out
    if says is None:
        assert "Not exact" not in printed
        assert_same(final(config, name), final(config, "whole"))
    else:  # 9 steps of 2: half of the second epoch; then 2 steps of 3, and 4 of the third
        assert says in printed and "at sample 6" in printed and final(config, name)["global_step"] == 9 + 2 + 4


def test_another_seed_keeps_the_order_of_the_data_and_says_so(
    config: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    assert fit(config, "seed5", "--seed_everything", "5", "--ckpt_path", str(whole / "17.ckpt")) == 0
    assert "Not exact after this resume: the seed of this run is 5, it was 0: the data keep" in capsys.readouterr().out
    assert final(config, "seed5")["global_step"] == 18


VIDEO = """
trainer: {{accelerator: cpu, max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: VideoTask
  init_args:
    name: lookupvivit_tiny_joint_patch8x2_32
    compressed_size: [1, 2, 2]
    args: {{embed_dim: 24, depth: 2, num_heads: 2}}
    drop_path_rate: 0.5
data:
  class_path: MotionDataModule
  init_args:
    root: {output}/motion
    train_per_class: 1
    val_per_class: 1
    frames: 8
    num_frames: 4
    short_side: [34, 40]
    batch_size: 3
    num_workers: 0
    mixup: 0.8
    rand_augment: {{num_ops: 1, magnitude: 5}}
save_every_n_steps: 1
output_dir: {output}
name: video
"""


def test_videos_go_on_exactly_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Another number of workers, and a bad file: the times of the clips and what stands in follow from the sample."""
    config = tmp_path / "video.yaml"
    config.write_text(VIDEO.format(output=tmp_path))
    data = MotionDataModule(str(tmp_path / "motion"), train_per_class=1, val_per_class=1, frames=8)
    data.prepare_data()
    path = data.list_split("train").paths[3]
    Path(path).write_bytes(Path(path).read_bytes()[:900])
    steps = tmp_path / "steps"
    steps.mkdir()
    options = ["--data.max_bad_share", "0.2"]
    assert fit(config, "whole", *options, cut={"folder": steps}) == 0
    want = final(config, "whole")
    assert want["global_step"] == 6
    resume = ["--ckpt_path", str(steps / "2.ckpt"), "--data.num_workers", "2"]
    assert fit(config, "rest", *options, *resume) == 0
    got = final(config, "rest")
    assert all(torch.equal(value, got["state_dict"][name]) for name, value in want["state_dict"].items())


class Insist(Callback):
    """Sends two SIGINTs in the first step, and says so if it is still there after it."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        print("the step went on", flush=True)


def test_a_second_interrupt_ends_the_process_at_once(config: Path) -> None:
    argv = [sys.executable, "-m", "lookupvit", "fit", "--config", str(config), "--name", "insist"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    argv.append("--trainer.callbacks+=test_resume.Insist")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "the step went on" not in done.stdout and "Traceback" not in done.stderr
    assert not list(config.parent.glob("insist/**/*.ckpt"))
