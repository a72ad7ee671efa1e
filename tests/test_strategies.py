"""The strategies' configurations, and FSDP2 from the command line on two CPU processes, resumed on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lookupvit.cli.main import main

BASE = Path(__file__).parents[1] / "configs" / "base"
CONFIG = """
include: [{base}]
trainer: {{accelerator: cpu, devices: {devices}, precision: 32-true, max_epochs: 2, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args:
    name: lookupvit_tiny_patch16_224
    compressed_sizes: [[1, 1], [2, 2], [3, 3]]
    args: {{embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8}}
    optimizer: sgd
    lr: 0.1
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: {batch_size}, num_workers: 0}}
output_dir: {output}
name: run
"""


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("ddp", "DDPStrategy"),
        ("fsdp", "FSDPStrategy"),
        ("fsdp2", "ModelParallelStrategy"),
        ("slurm", "SLURMEnvironment"),
        ("imagenet_shards", "WebDatasetDataModule"),
    ],
)
def test_pieces_compose_with_an_experiment(piece: str, expected: str, capsys: pytest.CaptureFixture) -> None:
    argv = ["fit", "--config", str(BASE.parent / "classification" / "imagenet1k_base.yaml")]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--config", str(BASE / f"{piece}.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and expected in printed and "find_unused_parameters: true" not in printed


def test_fsdp2_trains_as_one_process_and_its_checkpoint_resumes_on_one(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = {}
    for devices, base in ((1, "cpu"), (2, "fsdp2")):
        output = tmp_path / str(devices)
        text = CONFIG.format(
            base=BASE / f"{base}.yaml", devices=devices, batch_size=4 // devices, root=image_tree, output=output
        )
        (tmp_path / f"{base}.yaml").write_text(text)
        runs[base] = ["fit", "--config", str(tmp_path / f"{base}.yaml")]
        checkpoint = output / "run" / "version_0" / "checkpoints" / "last.ckpt"
        if devices == 1:
            assert main(runs[base]) == 0
            want = torch.load(checkpoint, weights_only=True)
    command = [sys.executable, "-m", "lookupvit", *runs["fsdp2"]]
    command += ["--trainer.strategy.init_args.data_parallel_size", "2", "--save_every_n_steps", "4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr
    sharded, half = torch.load(checkpoint, weights_only=True), checkpoint.with_name("last.previous.ckpt")
    assert sharded["task"] == "lookupvit.tasks.classification.ClassificationTask"
    assert {type(value) for value in sharded["state_dict"].values()} == {torch.Tensor}
    assert torch.load(half, weights_only=True)["global_step"] == 4
    capsys.readouterr()
    resume = [*runs["cpu"], "--ckpt_path", str(half), "--name", "resumed"]
    assert main(resume) == 0
    assert "Not exact after this resume: 1 ranks instead of 2, the same global batch" in capsys.readouterr().out
    got = torch.load(tmp_path / "1" / "resumed" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    for run in (sharded, got):
        assert run["global_step"] == want["global_step"] == 6
        for name, value in want["state_dict"].items():
            torch.testing.assert_close(run["state_dict"][name], value, rtol=0, atol=1e-5)
