"""The data suite, on rendered JPEGs."""

import importlib.util
from pathlib import Path

import pytest
import torch

from datamodules import ImageFolderDataModule
from datamodules.demos.shapes import render_demo
from lookupvit.bench.report import Report


@pytest.fixture(scope="module")
def suite():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"
    spec = importlib.util.spec_from_file_location("benchmarks_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "demo"
    render_demo(folder, train_per_class=1, val_per_class=1, size=40)
    return str(folder)


def test_all_competitors_make_the_same_evaluation_batch(suite, root):
    data = ImageFolderDataModule(root, img_size=32, batch_size=4, num_workers=0, val_split="train")
    data.setup("fit")
    batches = {name: load()[0] for name, load in suite.loaders(data, False, 1).items()}
    images, targets = batches[suite.OURS]
    for other, same_targets in batches.values():
        assert torch.equal(targets, same_targets)
        # PIL rounds to 8 bits between its passes: a grey level or two, in units of a deviation of about 0.22
        assert (images - other).abs().mean() < 2 / 255 / 0.22


def test_table(suite, root, tmp_path):
    suite.main(["--root", root, "--img_size", "32", "--quick", "--consumes", "1e9", "--output", str(tmp_path)])
    report = Report.from_json((tmp_path / "data.json").read_text())
    assert [row["model"] for row in report.rows] == [suite.BASELINE, suite.DECODED, suite.OURS] * 2
    assert all(row["images"] == 4 and row["same twice"] == "yes" for row in report.rows)
    assert all(99 < row["waits %"] < 100 for row in report.rows)


def test_a_seed_is_what_repeats(suite):
    assert suite.repeats_itself(lambda: [(torch.rand(3), torch.rand(1))])
    ticks = iter(range(100))
    assert not suite.repeats_itself(lambda: [(torch.tensor(next(ticks)), torch.tensor(0))])


def test_padded_crops_of_small_images(suite, root):
    data = ImageFolderDataModule(root, img_size=40, batch_size=5, num_workers=0, crop_padding=4, val_split="train")
    data.setup("fit")
    for load in suite.loaders(data, True, 2).values():
        assert [images.shape for images, _ in load()] == [(5, 3, 40, 40)] * 2
