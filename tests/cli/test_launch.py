"""Many trainings at once: in one folder, by two commands, through submitit; the table is that of one at a time."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_ablate import BASE
from test_main import error_of

from lookupvit.cli import runs
from lookupvit.cli.launch import processes
from lookupvit.cli.launch.job import Job
from lookupvit.cli.main import main

SAME = ("name", "compressed_size", "parameters", "gmacs", "seeds", "top1", "top1_std", "difference", "difference_std")


@pytest.fixture
def grid(tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of an ablation of two configurations; it and its processes use one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "base.yaml").write_text(BASE.format(root=image_tree))
    (tmp_path / "fast.yaml").write_text("include: base.yaml\nmodel: {init_args: {lr: 0.01}}\n")
    return [str(tmp_path / "base.yaml"), str(tmp_path / "fast.yaml")]


def table(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "ablation.json").read_text())["rows"]
    return [{name: row[name] for name in SAME} for row in rows]


def versions(folder: Path) -> dict[str, int]:
    """How often each run was begun."""
    return {run.name: len(list(run.glob("version_*"))) for run in folder.iterdir() if (run / "done.json").is_file()}


def test_two_at_once_give_the_table_of_one_at_a_time(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["ablate", *grid, "--output"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    capsys.readouterr()
    # two commands at once, one of them with two processes
    command = [sys.executable, "-m", "lookupvit", *argv, str(tmp_path / "two")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert main([*argv, str(tmp_path / "two"), "--jobs", "2"]) == 0
    assert other.wait(120) == 0, other.stdout.read()
    assert versions(tmp_path / "two") == {"base_seed0": 1, "fast_seed0": 1}
    assert table(tmp_path / "two") == table(tmp_path / "one")
    assert "begins, output in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_stops_all_and_the_same_command_goes_on(grid: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["ablate", *grid, "--output", str(out), "--jobs", "2", "--trainer.max_epochs", "4000"]
    command = subprocess.Popen([sys.executable, "-m", "lookupvit", *argv], stdout=subprocess.DEVNULL)
    lasts = [out / f"{name}_seed0/version_0/checkpoints/last.ckpt" for name in ("base", "fast")]
    deadline = time.monotonic() + 120
    while not all(last.is_file() for last in lasts):
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 75
    for last in lasts:
        assert "go on with --ckpt_path last" in (last.parents[2] / "train.log").read_text()
        assert not (last.parents[2] / "done.json").exists()
        (last.parents[2] / "settings.json").write_text(
            (last.parents[2] / "settings.json")
            .read_text()
            .replace('"trainer.max_epochs": 4000', '"trainer.max_epochs": 1')
        )
    # what was stopped goes on from its checkpoint: it has had its epoch, so that no step follows
    assert main([*argv[:-1], "1"]) == 0
    assert all("going on from" in (last.parents[2] / "train.log").read_text() for last in lasts)


def test_one_that_fails_leaves_the_others_alone(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, image_tree: Path
) -> None:
    Path(grid[1]).write_text("include: base.yaml\ndata: {init_args: {root: nowhere}}\n")
    message = error_of(capsys, ["ablate", *grid, "--output", str(tmp_path / "out"), "--jobs", "2"])
    assert message.startswith("fast_seed0 failed: ") and "nowhere" in message and "train.log" in message
    assert "the same command goes on" in message and (tmp_path / "out/base_seed0/done.json").is_file()


def test_each_process_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    found = [processes._environment(place, 3) for place in range(5)]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}  # 8 cores for 3
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0", "1", "2", "3", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes._environment(2, 3)["CUDA_VISIBLE_DEVICES"] == "6"
    assert processes._environment(2, 3)["OMP_NUM_THREADS"] == "1"  # what is set stays


def test_a_folder_that_is_held_is_not_trained_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(str(tmp_path / "a"), [], {}, str(tmp_path))
    begun = []
    monkeypatch.setattr(runs, "_train", lambda folder, *rest: begun.append(folder))
    with job.held() as mine:
        assert mine and not job.is_free() and not runs.attempt(job, None)
    assert not begun and job.is_free()
    assert runs.attempt(job, None) and begun == [tmp_path / "a"]
    (tmp_path / "a" / "done.json").write_text('{"settings": {}}')  # the process before has finished it
    assert runs.attempt(job, None) and len(begun) == 1


@pytest.mark.slow
def test_an_array_of_four_through_submitit(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    argv = ["ablate", *grid, "--seeds", "0", "1", "--launcher", "local", "--slurm", "timeout_min=5", "--output"]
    out = tmp_path / "out"
    assert main([*argv, str(out)]) == 0
    printed = capsys.readouterr().out
    submitted = json.loads((out / "submitted" / "submitted.json").read_text())
    assert len(set(submitted.values())) == 4 == printed.count(" submitted, job ")
    assert versions(out) == {f"{name}_seed{seed}": 1 for name in ("base", "fast") for seed in (0, 1)}
    assert main([*argv, str(out)]) == 0 and "4 of 4 runs are finished" in capsys.readouterr().out
    one = tmp_path / "one"
    monkeypatch.setattr(runs, "run_cluster", None)
    for name in submitted:  # the runs are the same whoever began them
        shutil.copytree(out / name, one / name)
    assert main(["ablate", *grid, "--seeds", "0", "1", "--output", str(one)]) == 0
    assert table(one) == table(out)


@pytest.mark.slow
def test_a_job_that_is_preempted_goes_on_from_its_checkpoint(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    submitit = pytest.importorskip("submitit")
    from lookupvit.cli.launch.cluster import Training

    out = tmp_path / "out"
    settings = {"trainer.max_epochs": 150}
    options = ["--config", grid[0], "--trainer.max_epochs", "150", *runs.here(out), "--name", "a"]
    job = Job(str(out / "a"), options, settings, os.getcwd())
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=60)
    handle = executor.submit(Training(), job)
    last = out / "a/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file():
        assert not handle.done() and time.monotonic() < deadline
        time.sleep(0.1)
    (task,) = Path(f"/proc/{handle.job_id}/task/{handle.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # what the cluster sends
    handle.result()
    log = job.log.read_text()
    assert "SIGTERM: saved" in log and "going on from" in log
    done = json.loads((out / "a" / "done.json").read_text())
    assert done["epochs"] == 150 and done["checkpoint"].startswith("version_1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "'0' is not a whole number of at least 1"),
        (["--slurm", "timeout_min=5"], "--slurm gives parameters of a cluster's jobs: it needs --launcher slurm"),
        (["--launcher", "local", "--jobs", "2"], "--launcher local runs every job at once"),
        (["--launcher", "local", "--slurm", "timeout"], "--slurm timeout is not of the form NAME=VALUE"),
        (["--launcher", "local", "--slurm", "colour=x"], "--launcher local: Parameter 'colour'"),
        (["--launcher", "slurm"], "--launcher slurm: "),  # there is none here
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if "--launcher" in options:
        pytest.importorskip("submitit")
    assert message in error_of(capsys, ["ablate", *grid, "--output", str(tmp_path / "out"), *options])


def test_the_recipe_for_optuna(grid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    text = (Path(__file__).parents[2] / "docs" / "SCALING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(code, "SCALING.md", "exec"), scope)
    rates = [trial.params["lr"] for trial in scope["study"].trials]
    assert len(set(rates)) == 2 and 0 <= scope["study"].best_value <= 1
    for number, rate in enumerate(rates):
        config = yaml.safe_load((tmp_path / f"outputs/optuna/{number}/version_0/config.yaml").read_text())
        assert config["model"]["init_args"]["lr"] == rate
