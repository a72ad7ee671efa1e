"""Run folders: one a run whatever the logger, one name for where they are, one process in each."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_main import error_of
from tiny import write_config

from datamodules.demos.scenes import render_scenes
from lookupvit.cli.common.run_folder import claim, lock
from lookupvit.cli.main import main

FORK = multiprocessing.get_context("fork")
QUIET = ["--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]


@pytest.fixture
def config(tmp_path: Path, image_tree: Path) -> Path:
    return write_config(tmp_path, image_tree, "outputs", depth=2)


def hold(run: Path, ready: Any) -> None:
    """Holds a run's lock until it is killed."""
    held = lock(run)
    ready.set()
    time.sleep(600)
    held.release()


def claim_many(experiment: Path, start: Any, names: Any) -> None:
    start.wait(60)
    for _ in range(50):
        names.append(claim(experiment).name)


def step(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


@pytest.mark.parametrize("logger", ["false", "lightning.pytorch.loggers.CSVLogger"])
def test_checkpoints_live_in_the_runs_folder_whatever_the_logger(logger: str, config: Path, tmp_path: Path) -> None:
    argv = ["fit", "--config", str(config), *QUIET, f"--trainer.logger={logger}"]
    argv += [f"--trainer.logger.save_dir={tmp_path / 'csv'}"] if logger != "false" else []
    assert main(argv) == 0
    first = tmp_path / "outputs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    before = first.read_bytes()
    assert main([*argv, "--model.lr=1e-5"]) == 0
    second = first.parents[2] / "version_1" / "checkpoints" / "last.ckpt"
    assert second.is_file() and first.read_bytes() == before
    assert main([*argv, "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0  # goes on in the second's folder
    assert (step(second), step(first)) == (6, 3)
    assert sorted(path.name for path in first.parents[2].iterdir()) == ["version_0", "version_1"]
    if logger == "false":
        assert yaml.safe_load((first.parents[1] / "config.yaml").read_text())["name"] == "tiny"


def test_the_trainers_own_name_for_the_output_folder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = config.read_text()
    config.write_text(text.replace(f"output_dir: {tmp_path / 'outputs'}\n", ""))
    elsewhere = tmp_path / "elsewhere"
    argv = ["fit", "--config", str(config), *QUIET]
    assert main([*argv, "--trainer.default_root_dir", str(elsewhere)]) == 0
    assert (elsewhere / "tiny" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    both = ["--output_dir", str(tmp_path / "a"), "--trainer.default_root_dir", str(tmp_path / "b")]
    assert "name two folders for the output: give one of them" in error_of(capsys, [*argv, *both])
    assert main([*argv, "--output", str(tmp_path / "old_name")]) == 0
    assert (tmp_path / "old_name" / "tiny" / "version_0").is_dir()


def test_a_second_process_in_a_run_folder_is_one_line_and_a_dead_one_blocks_nobody(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["fit", "--config", str(config), *QUIET]) == 0
    run = tmp_path / "outputs" / "tiny" / "version_0"
    ready = FORK.Event()
    holder = FORK.Process(target=hold, args=(run, ready))
    holder.start()
    assert ready.wait(60)
    try:
        resume = ["fit", "--config", str(config), *QUIET, "--ckpt_path=last", "--trainer.max_epochs=2"]
        assert f"another process is training in {run}: wait" in error_of(capsys, resume)
        assert step(run / "checkpoints" / "last.ckpt") == 3
    finally:
        holder.kill()  # SIGKILL: it cannot tidy up
        holder.join()
    assert main(resume) == 0 and step(run / "checkpoints" / "last.ckpt") == 6
    lock(run).release()  # a finished run has let it go


def test_two_that_start_together_get_a_folder_each(tmp_path: Path) -> None:
    start = FORK.Barrier(2)
    with FORK.Manager() as manager:
        names = manager.list()
        both = [FORK.Process(target=claim_many, args=(tmp_path / "x", start, names)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        names = list(names)
    assert len(names) == len(set(names)) == 100
    assert claim(tmp_path / "x").name == "version_100"


CAPTIONS = """
trainer: {{accelerator: cpu, max_epochs: 1, enable_progress_bar: false, limit_val_batches: 1}}
model:
  class_path: CaptioningTask
  init_args:
    name: lookupvit_tiny_patch16_224
    compressed_size: [2, 2]
    args: {{embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8}}
    decoder: {{depth: 1, num_heads: 2}}
    freeze_encoder: false
    val_generation: {{method: greedy, max_length: 4}}
data:
  class_path: COCOCaptionsDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 4, num_workers: 0}}
output_dir: {output}
name: captions
"""


def test_the_monitor_follows_the_task_and_is_looked_for_before_training(
    tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture
) -> None:
    render_scenes(tmp_path / "scenes", train_images=4, val_images=4, size=32)
    (tmp_path / "captions.yaml").write_text(CAPTIONS.format(root=tmp_path / "scenes", output=tmp_path))
    argv = ["fit", "--config", str(tmp_path / "captions.yaml")]
    assert main(argv) == 0
    folder = tmp_path / "captions" / "version_0" / "checkpoints"
    assert [file.name[:15] for file in folder.glob("epoch*.ckpt")] == ["epoch000-cider_"]
    message = error_of(capsys, [*argv, "--checkpoint.monitor=val/top1"])
    assert message.startswith("--checkpoint.monitor val/top1 is not among") and "val/cider" in message
    assert not list((tmp_path / "captions" / "version_1").glob("**/*.ckpt"))
    with pytest.raises(SystemExit):
        main([*argv, "--config", json.dumps({"model": {"class_path": "ClassificationTask"}}), "--print_config"])
    assert "monitor: val/top1" in capsys.readouterr().out
