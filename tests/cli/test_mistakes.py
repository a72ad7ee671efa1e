"""Mistakes that users make, and disks that take no more: one line that names the thing and the remedy, no traceback."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import TREE_CLASSES, write_tree
from lightning_utilities.core.imports import RequirementCache
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import write_config

from lookupvit.cli.main import main
from lookupvit.tasks import CaptioningTask
from lookupvit.writing import WriteError, check_writable, whole, whole_files, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny.yaml``, the ``tree`` that it trains on, and ``out``, with a run of it."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_tree(folder / "tree", TREE_CLASSES, {"train": 4, "val": 2}, size=32)
    assert main(["fit", "--config", str(write_config(folder, folder / "tree", "out", depth=1))]) == 0
    return folder


@pytest.fixture(scope="module")
def last(home: Path) -> str:
    """A checkpoint."""
    return str(next((home / "out").rglob("last.ckpt")))


def line_of(capfd: pytest.CaptureFixture, argv: list[str], code: int = 2) -> str:
    """Runs a command that must fail: the exit code, one line on stderr, no table before it."""
    capfd.readouterr()
    assert main(argv) == code
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("lookupvit")]
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err and len(printed.out.splitlines()) < 40, printed.out
    return lines[0].partition("error: ")[2]


def fit(home: Path, *options: str) -> list[str]:
    return ["fit", "--config", str(home / "tiny.yaml"), "--output_dir", str(home / "other"), *options]


def test_a_misspelt_section(home: Path, capfd: pytest.CaptureFixture) -> None:
    wrong = home / "modle.yaml"
    wrong.write_text((home / "tiny.yaml").read_text().replace("\nmodel:", "\nmodle:"))
    line = line_of(capfd, ["fit", "--config", str(wrong)])
    assert "'modle' is no section of the configuration: did you mean 'model'?" in line


def test_a_negative_number_with_an_exponent(home: Path, capfd: pytest.CaptureFixture) -> None:
    assert "lr -0.001" in line_of(capfd, fit(home, "--model.lr", "-1e-3"))


@pytest.mark.parametrize("name", ["wandb", "WandbLogger"])
def test_a_logger_that_is_not_installed(
    name: str, home: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", RequirementCache("not_there>=1"))
    line = line_of(capfd, fit(home, "--trainer.logger", name))
    assert "--trainer.logger needs the package not_there" in line and "pip install not_there" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(home: Path, capfd: pytest.CaptureFixture) -> None:
    assert "no GPU is visible: add --config configs/base/cpu.yaml" in line_of(
        capfd, fit(home, "--trainer.accelerator", "gpu")
    )
    assert (Path(__file__).parents[2] / "configs/base/cpu.yaml").is_file()


def test_barebones(home: Path, capfd: pytest.CaptureFixture) -> None:
    line = line_of(capfd, fit(home, "--trainer.barebones", "true"))
    assert line.startswith("--trainer.barebones measures raw speed") and "0x" not in line


def test_fewer_steps_than_an_epoch_say_that_nothing_is_validated(home: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(fit(home, "--trainer.max_steps", "1")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "none: max_steps 1 ends before the first, at step 3" in printed
    assert main(fit(home, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")) == 0  # the remedy
    assert "ends before" not in capsys.readouterr().out
    assert next((home / "other").rglob("epoch*.ckpt")).is_file()
    assert main(fit(home, "--trainer.max_steps", "3")) == 0
    assert "ends before" not in capsys.readouterr().out


def test_weights_of_another_kind_of_model(home: Path, capfd: pytest.CaptureFixture) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), home / "resnet.pt")
    line = line_of(capfd, fit(home, "--model.init_from", str(home / "resnet.pt")))
    assert "resnet.pt are of another kind of model" in line and "conv1.weight" in line


def test_predict_of_a_plain_file_of_weights(home: Path, last: str, capfd: pytest.CaptureFixture) -> None:
    torch.save(torch.load(last, weights_only=True)["state_dict"], home / "plain.pt")
    argv = ["predict", "--ckpt_path", str(home / "plain.pt"), "--data.predict_path", str(home / "tree")]
    line = line_of(capfd, argv)
    assert "plain.pt does not say which model it is of" in line and "--config" in line


@pytest.mark.parametrize("part", ["run", "experiment"])
def test_predict_of_a_folder_of_runs(part: str, home: Path, last: str, tmp_path: Path) -> None:
    folder = Path(last).parents[1] if part == "run" else Path(last).parents[2]
    argv = ["predict", "--ckpt_path", str(folder), "--data.predict_path", str(home / "tree" / "val")]
    assert main([*argv, "--trainer.accelerator", "cpu", "--output_dir", str(tmp_path)]) == 0
    assert len(next(tmp_path.rglob("predictions.jsonl")).read_text().splitlines()) == 6


def test_cost_of_a_video_model(capfd: pytest.CaptureFixture) -> None:
    line = line_of(capfd, ["cost", "--model", "lookupvivit_tiny_joint_patch16x2_224"])
    assert "cost counts image models, not a LookupViViT" in line


@pytest.mark.parametrize("wait", [0.3, 1.2])
def test_an_interrupt_while_importing(wait: float, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lookupvit", *fit(home)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert "Traceback" not in printed, printed
    assert process.returncode in (130, -signal.SIGINT)


def commands(home: Path, last: str) -> dict[str, list[str]]:
    """Every command that writes, but for the folder that it writes to."""
    return {
        "fit": ["fit", "--config", str(home / "tiny.yaml"), "--output_dir"],
        "predict": [
            *("predict", "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"),
            *("--data.predict_path", str(home / "tree"), "--output_dir"),
        ],
        "export": ["export", last, "--format", "folder", "--output"],
        "sweep": ["sweep", last, "--rounds", "1", "--batch", "2", "--device", "cpu", "--output"],
        "bench": ["bench", "block", "--quick", "--output"],
        "attend": ["attend", last, "--path", str(home / "tree" / "val"), "--count", "1", "--output"],
        "make-shards": ["make-shards", str(home / "tree")],
    }


@pytest.mark.parametrize("command", ["fit", "predict", "export", "sweep", "bench", "attend", "make-shards"])
def test_a_place_that_cannot_be_written(command: str, home: Path, last: str, capfd: pytest.CaptureFixture) -> None:
    blocked = home / "a_file"  # no folder can be made below a file, whoever tries
    blocked.write_text("")
    line = line_of(capfd, [*commands(home, last)[command], str(blocked / "out")])
    assert "a_file" in line and ("Not a directory" in line or "exists" in line)


@pytest.mark.parametrize("command", ["fit", "predict", "export", "sweep", "bench", "attend"])
def test_a_full_disk(
    command: str, home: Path, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Everything but the first byte that goes to the disk fails: the probe of `check_writable` passes."""
    real, seen = os.replace, []

    def full(source: str, target: str) -> None:
        if tmp_path in Path(target).parents and Path(target).name != ".probe":
            seen.append(target)
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    line = line_of(capfd, [*commands(home, last)[command], str(tmp_path / "out")])
    assert seen and "No space left on device" in line and str(tmp_path) in line
    left = [file for file in tmp_path.rglob("*") if file.is_file() and "tfevents" not in file.name]
    assert not [file for file in left if file.name != "hparams.yaml" and not file.name.endswith(".partial")], left


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "old\n")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a" / "b.txt") as partial:
        partial.write_text("new")
        raise KeyboardInterrupt
    told = r"cannot write .*b\.txt: Disk quota exceeded \([\d.]+ GB free there\)"
    with pytest.raises(WriteError, match=told), whole(tmp_path / "a" / "b.txt") as partial:
        partial.write_text("new")
        raise RuntimeError("PytorchStreamWriter failed") from OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    with pytest.raises(ValueError, match="a bug"), whole(tmp_path / "a" / "b.txt"):
        raise ValueError("a bug")
    assert (tmp_path / "a" / "b.txt").read_text() == "old\n"
    with pytest.raises(WriteError), whole_files(tmp_path / "new") as folder:
        (folder / "1").write_text("1")
        raise OSError(errno.ENOSPC, "full")
    with whole_files(tmp_path / "a") as folder:
        (folder / "c.txt").write_text("c")
    check_writable(tmp_path / "a")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/b.txt", "a/c.txt"]


@pytest.mark.parametrize("command", [["export"], ["knn", "--data.root", "nowhere"]])
def test_a_captioner_where_a_classifier_is_wanted(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    options = {"img_size": 32, "compressed_size": (2, 2), "args": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
    decoder = {"depth": 1, "num_heads": 2, "context_length": 8}
    task = CaptioningTask("lookupvit_tiny_patch4_32", decoder=decoder, vocab_size=9, freeze_encoder=False, **options)
    data = {"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": "nowhere", "img_size": 32}}
    saved = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "data_config": data}
    torch.save(saved, tmp_path / "captioner.ckpt")
    line = line_of(capfd, [command[0], str(tmp_path / "captioner.ckpt"), *command[1:]])
    assert "captioner.ckpt are of a captioner, and a classifier is wanted here" in line


def test_robustness_sets_of_more_classes_than_the_model(home: Path, last: str, capfd: pytest.CaptureFixture) -> None:
    for name in TREE_CLASSES:
        (home / "imagenet-r" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(home / "tree" / "val" / name / "0.JPEG", home / "imagenet-r" / name)
    argv = ["test", "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    argv += ["--data", "ImageNetRobustnessDataModule", "--data.root", str(home), "--data.imagenet_r"]
    line = line_of(capfd, [*argv, str(home / "imagenet-r")])
    assert "has 3 classes, the data 1000" in line and "--data.wnids" in line


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scores_are_files_beside_the_checkpoint(
    command: str, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = [command, "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    stem = Path(last).parent / command
    assert f"wrote {stem}.json and {stem}.csv" in printed
    document = json.loads(stem.with_suffix(".json").read_text())
    top1 = document["metrics"][f"{'val' if command == 'validate' else 'test'}/top1"]
    assert top1 in [pytest.approx(k / 6) for k in range(7)] and document["checkpoint"] == last  # of six images
    with stem.with_suffix(".csv").open() as file:
        assert {row["metric"]: float(row["value"]) for row in csv.DictReader(file)} == document["metrics"]
    assert "limit_batches" not in document
    limit = [f"--trainer.limit_{command if command == 'test' else 'val'}_batches", "1"]
    subprocess.run([sys.executable, "-m", "lookupvit", *argv, *limit], check=True, capture_output=True)
    assert json.loads(stem.with_suffix(".json").read_text())["limit_batches"] == 1

    def refuse(path: Path, text: str) -> None:
        raise WriteError("cannot write it")

    monkeypatch.setattr("lookupvit.callbacks.scores.write_text", refuse)
    assert main(argv) == 0  # a model on a read-only disk can be tested
    assert "warning: cannot write it" in capsys.readouterr().err


def test_a_run_of_few_steps_has_a_training_curve(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "short.yaml"
    config.write_text((home / "tiny.yaml").read_text().replace("log_every_n_steps: 1, ", ""))
    assert main(["fit", "--config", str(config), "--output_dir", str(tmp_path), "--name", "short"]) == 0
    events = EventAccumulator(str(tmp_path / "short" / "version_0")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2]
