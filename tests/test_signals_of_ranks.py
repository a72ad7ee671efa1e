"""A signal to one rank of two stops both after the same step, with one checkpoint."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_resume import CONFIG

STEP = 4


class SignalOne(Callback):
    """Signals rank 1 alone in optimiser step `STEP`; each rank prints the step that it stopped after."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == STEP and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        line = f"rank {trainer.global_rank} after {trainer.global_step}: {type(exception).__name__}\n"
        os.write(1, line.encode())  # in one piece: the ranks share a pipe


def test_one_ranks_signal_stops_both_one_step_later(image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG.format(root=image_tree, output=tmp_path))
    argv = [sys.executable, "-m", "lookupvit", "fit", "--config", str(tmp_path / "run.yaml"), "--data.batch_size=1"]
    argv += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=test_signals_of_ranks.SignalOne"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*argv, "--save_every_n_steps=null"], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 75, done.stderr
    ends = re.findall(r"rank (\d) after (\d+): (\w+)", done.stdout)
    assert sorted(ends) == [("0", str(STEP + 1), "Preempted"), ("1", str(STEP + 1), "Preempted")]
    assert "another rank's signal: saved" in done.stderr
    (last,) = tmp_path.glob("run/**/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == STEP + 1
