"""Kills a training run many times, resumes it, and compares its end with that of an undisturbed run: `make chaos`.

For each number of processes and of loader workers: one run without interruption, and one that is killed at random
moments (SIGKILL to every process at once, wherever it is: in a step, a validation, the writing of a checkpoint) or
signalled (SIGTERM) and started again with `--ckpt_path last` until it ends. Weights, moving average and optimiser must
be the same bit for bit; after SIGTERM the process must end by itself, with exit code 75, and lose no step.

    python benchmarks/chaos.py --kills 20 --processes 1 2 --workers 0 2 --signals KILL TERM
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

REQUEUE = 75
HANG = 300  # seconds that a signalled run may take to end


def command(folder: Path, name: str, processes: int, workers: int, epochs: int) -> list[str]:
    """The run: a demo of two compressed sizes, with everything that a resume could get wrong switched on."""
    options = {
        "config": "configs/demo_multi.yaml",
        "output_dir": folder,
        "name": name,
        "save_every_n_steps": 3,
        "trainer.max_epochs": epochs,
        "trainer.devices": processes,
        "trainer.strategy": "ddp" if processes > 1 else "auto",
        "trainer.enable_progress_bar": "false",
        "model.ema_decay": 0.99,
        "model.drop_path_rate": 0.1,
        "data.root": folder.parent / "demo",
        "data.train_per_class": 100,
        "data.val_per_class": 20,
        "data.batch_size": 16 // processes,
        "data.num_workers": workers,
        "data.recipe": "deit",
    }
    argv = [sys.executable, "-m", "lookupvit", "fit"]
    return argv + [str(part) for key, value in options.items() for part in (f"--{key}", value)]


def start(argv: list[str], log: Path) -> subprocess.Popen:
    """Starts the run in a process group of its own, so that a signal reaches all of its processes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(argv, stdout=file, stderr=file, env=env, start_new_session=True)


def steps(folder: Path, name: str) -> int:
    """Optimiser steps in the newest whole checkpoint."""
    from lookupvit.checkpoints.find import find_checkpoint, load

    try:
        return load(find_checkpoint("last", folder / name))["global_step"]
    except FileNotFoundError:
        return 0


def await_training(process: subprocess.Popen, log: Path, panels: int) -> None:
    """Waits until the run has printed its summary, the log's `panels`-th, or has ended."""
    while process.poll() is None and log.read_bytes().count(b"output folder") < panels:
        time.sleep(0.02)


def interrupted(folder: Path, argv: list[str], name: str, kills: int, number: int, training: float) -> tuple[int, int]:
    """Runs to the end under `kills` signals at random moments; how many met the run alive, and how many hung."""
    log, chance, done, hung, before = folder / f"{name}.log", random.Random(0), 0, 0, 0
    process = start(argv, log)
    while True:
        if done < kills:  # on average, all of them together take half of the training
            await_training(process, log, log.read_bytes().count(b"output folder") + 1)
            begun, wait = time.monotonic(), chance.uniform(0, training / kills)
        else:
            begun, wait = time.monotonic(), float("inf")
        while process.poll() is None and time.monotonic() - begun < wait:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, number)
            done += 1
            try:
                process.wait(timeout=HANG)
            except subprocess.TimeoutExpired:
                hung += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode == 0:
            return done, hung
        expected = {-number, REQUEUE} if number == signal.SIGTERM else {-number}
        if process.returncode not in expected:
            raise SystemExit(f"{name}: exit code {process.returncode}, expected one of {expected}: see {log}")
        now = steps(folder, name)
        if now < before:
            raise SystemExit(f"{name}: {before} steps were saved before, {now} now: steps were lost, see {log}")
        before = now
        process = start([*argv, *(["--ckpt_path", "last"] if now else [])], log)


def same(first: Path, second: Path) -> list[str]:
    """Names of the tensors that differ between two checkpoints."""
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    parts = {
        f"{key}.{name}": (value, b[key][name])
        for key in ("state_dict", "current_model_state")
        for name, value in a[key].items()
    }
    for index, state in a["optimizer_states"][0]["state"].items():
        parts |= {f"optimizer.{index}.{k}": (v, b["optimizer_states"][0]["state"][index][k]) for k, v in state.items()}
    return [name for name, (x, y) in parts.items() if not torch.equal(x, y)]


def last(folder: Path, name: str) -> Path:
    """The newest last.ckpt of a run."""
    return max((folder / name).glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--signals", nargs="+", default=["KILL", "TERM"], choices=["KILL", "TERM"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("outputs/chaos"))
    args = parser.parse_args()
    failed = False
    for processes in args.processes:
        for workers in args.workers:
            folder = (args.folder / f"p{processes}w{workers}").absolute()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            whole = start(command(folder, "whole", processes, workers, args.epochs), folder / "whole.log")
            await_training(whole, folder / "whole.log", 1)
            begun = time.monotonic()
            if whole.wait() != 0:
                raise SystemExit(f"the run without interruption failed: see {folder / 'whole.log'}")
            training = time.monotonic() - begun
            for name in args.signals:
                argv = command(folder, name, processes, workers, args.epochs)
                met, hung = interrupted(folder, argv, name, args.kills, signal.Signals[f"SIG{name}"], training)
                different = same(last(folder, "whole"), last(folder, name))
                failed |= bool(different or hung)
                verdict = f"{len(different)} tensors differ: {different[:3]}" if different else "bit-identical"
                print(
                    f"{processes} process(es), {workers} workers: {met} x SIG{name}, {hung} hung, {verdict}", flush=True
                )
    sys.exit(failed)


if __name__ == "__main__":
    main()
