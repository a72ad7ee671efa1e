"""`--trainer.logger NAME`: scalars and pictures reach each logger, offline."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from test_main import CONFIG, error_of

from lookupvit.analysis.plots import read_scalars
from lookupvit.callbacks.show import show_figure, show_table
from lookupvit.cli.main import main

QUIET = ["--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"]


@pytest.fixture
def argv(tmp_path: Path, image_tree: Path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(root=image_tree, output=tmp_path / "outputs"))
    return ["fit", "--config", str(tmp_path / "tiny.yaml"), *QUIET]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "tiny" / "version_0"


def test_csv_and_tensorboard_in_the_runs_folder(argv: list[str], run: Path) -> None:
    assert main([*argv, "--trainer.logger", "[csv, tensorboard]"]) == 0
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses == pytest.approx(read_scalars(run, "train/loss")[1]) and len(losses) == 3
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"] == ["csv", "tensorboard"]
    # a run that goes on keeps what it has written
    before = (run / "metrics.csv").read_text()
    assert main([*argv, "--trainer.logger=csv", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    assert (run / "metrics_before_0.csv").read_text() == before
    assert (run / "metrics.csv").is_file() and not (run.parent / "version_1").exists()


def test_wandb_offline(argv: list[str], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main([*argv, "--trainer.logger", "wandb"]) == 0
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 1000
    assert len(list((folder / "files/media/images/train").glob("batch_*.png"))) == 1


def test_mlflow_in_a_folder(argv: list[str], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert main([*argv, "--trainer.logger", "mlflow"]) == 0
    store = run.parents[1] / "mlruns"
    (losses,) = store.glob("*/*/metrics/train/loss")
    assert len(losses.read_text().splitlines()) == 3
    assert len(list(store.glob("*/*/artifacts/train/batch/step_0.png"))) == 1


def test_figures_and_tables_go_to_each_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    calls: list[tuple] = []

    class Experiment:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **options: calls.append((name, args, options))

    made = []
    for kind in (TensorBoardLogger, WandbLogger, MLFlowLogger):
        fake = type("Fake", (kind,), {"experiment": Experiment(), "run_id": "7", "__init__": lambda self: None})
        for name in ("log_image", "log_table"):
            setattr(fake, name, getattr(Experiment(), name))
        made.append(fake())
    trainer = type("T", (), {"loggers": made, "global_step": 5})()
    show_figure(trainer, "val/captions", Figure())
    show_table(trainer, "val/captions", ("generated", "references"), [("a dog", "one dog")])
    names = [name for name, *_ in calls]
    assert names == ["add_figure", "log_image", "log_figure", "add_text", "log_table", "log_text"]
    table = "| generated | references |\n| --- | --- |\n| a dog | one dog |"
    assert calls[3][1] == ("val/captions", table, 5)
    assert calls[4][1][1:] == ("val/captions_table", ["generated", "references"], [["a dog", "one dog"]])
    assert calls[5][1] == ("7", table + "\n", "val/captions/step_5.md")


def test_an_unknown_logger_is_one_line(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    message = error_of(capsys, [*argv, "--trainer.logger", "tensorbord"])
    assert message.startswith("--trainer.logger tensorbord: there is no such class")
