"""A test over several sets through the Trainer: the figures are those of scoring each set by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from rich.console import Console

from datamodules import CIFAR10CDataModule, ImageFolderDataModule
from datamodules.images.cifar10 import CLASSES
from lookupvit.callbacks.robustness import RobustnessTable, summary_table
from lookupvit.tasks import ClassificationTask


@pytest.fixture
def data(tmp_path: Path) -> CIFAR10CDataModule:
    noise = np.random.default_rng(0)
    for name in CLASSES:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / split / name / "0.png")
    return CIFAR10CDataModule(
        root=str(tmp_path),
        corrupted=str(tmp_path / "c"),
        corruptions=["contrast", "brightness"],
        num_workers=0,
        val_batch_size=7,
    )


def test_every_set_at_every_size(data: CIFAR10CDataModule, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    task = ClassificationTask(
        "lookupvit_tiny_patch4_32",
        num_classes=10,
        compressed_sizes=[[2, 2], [3, 3]],
        args={"embed_dim": 24, "depth": 2, "num_heads": 2},
    )
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[RobustnessTable(str(tmp_path / "out"))]
    )
    (logged,) = trainer.test(task, datamodule=data, verbose=False)
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert list(found) == ["3x3", "2x2"] and len(found["3x3"]["rows"]) == 1 + 2 * 5
    task.eval()
    for size in ((3, 3), (2, 2)):
        result, suffix = found["x".join(map(str, size))], "" if size == (3, 3) else "@2x2"
        right = torch.zeros(11, dtype=torch.long)
        for images, (targets, places) in data.test_dataloader():
            with torch.no_grad():
                predicted = task.model(images, size).argmax(dim=1)
            right += torch.bincount(places[predicted == targets], minlength=11)
        assert [row["top1"] for row in result["rows"]] == pytest.approx((right / 10).tolist())
        assert logged[f"test/cifar10/top1{suffix}"] == pytest.approx(right[0].item() / 10)
        expected = 1 - right[1:].sum().item() / 100
        assert logged[f"test/cifar10-c/mean_error{suffix}"] == pytest.approx(expected)
    lines = (tmp_path / "out" / "robustness.csv").read_text().splitlines()
    assert lines[0] == "compressed_size,set,part,severity,images,top1" and len(lines) == 1 + 2 * 11
    assert "contrast" in capsys.readouterr().out


def test_shares_are_printed_in_per_cent_and_mce_is_in_per_cent_already(capsys: pytest.CaptureFixture) -> None:
    summary = {"imagenet/top1": 0.7951, "imagenet-c/mean_error": 0.5, "imagenet-c/mce": 63.7}
    Console(width=80).print(summary_table({"5x5": {"rows": [], "summary": summary}}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = {words[1]: words[3] for words in lines if len(words) == 5 and words[1] in summary}
    assert printed == {"imagenet/top1": "79.51", "imagenet-c/mean_error": "50.00", "imagenet-c/mce": "63.70"}


def test_the_table_needs_such_data(tmp_path: Path, image_tree: Path) -> None:
    task = ClassificationTask("vit_tiny_patch4_32", num_classes=3, args={"embed_dim": 24, "depth": 1, "num_heads": 2})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[RobustnessTable()])
    with pytest.raises(ValueError, match="needs a data module of robustness sets"):
        trainer.test(task, datamodule=ImageFolderDataModule(str(image_tree), img_size=32, num_workers=0), verbose=False)
