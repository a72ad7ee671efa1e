"""Segmentation from the command line, on files: train, test, predict, cost, sweep, export; and side by side."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lookupvit.checkpoints.contents import read_contents
from lookupvit.cli import main as cli
from lookupvit.interop.export import load_program
from lookupvit.interop.load_model import load_model

MODEL = """
trainer: {max_epochs: 8, accelerator: cpu, logger: false, enable_progress_bar: false, check_val_every_n_epoch: 8}
model:
  class_path: SegmentationTask
  init_args:
    name: lookupvit_tiny_patch4_32
    args: {embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}
    compressed_sizes: [[1, 1], [2, 3]]
    lr: 3.0e-3
    pictures: 0
data:
  class_path: MaskFolderDataModule
  init_args: {root: ROOT, img_size: [32, 48], short_side: 32, batch_size: 4, val_batch_size: 2, num_workers: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of a dark and a bright half with their masks, and the run of a segmenter on them."""
    root, rng = tmp_path_factory.mktemp("halves"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 3), ("test", 3)):
        for place in range(count):
            mask = np.zeros((40, 60), np.uint8)
            mask[:, rng.integers(15, 45) :] = 1
            image = np.clip(mask[..., None] * 150 + rng.normal(50, 15, (40, 60, 3)), 0, 255).astype(np.uint8)
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / kind / split / f"{place}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    (root / "config.yaml").write_text("name: lookup\n" + MODEL.replace("ROOT", str(root)))
    assert cli.main(["fit", "--config", str(root / "config.yaml"), "--output_dir", str(root / "out")]) == 0
    return root


def run(capsys, *argv):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out + err


def test_checkpoint_says_what_it_holds(folder):
    contents = read_contents(folder / "out/lookup/version_0/checkpoints/last.ckpt")
    assert contents.class_names == ["dark", "bright"] and contents.trained_sizes == [(1, 1), (2, 3)]
    assert contents.score((2, 3))[0] == "val/miou@2x3" and contents.score((2, 3))[1] > 0.8
    model = load_model(folder / "out/lookup/version_0/checkpoints/last.ckpt", img_size=(64, 96))
    assert model.img_size == (64, 96) and model.class_names == ["dark", "bright"]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 50, 70)).shape == (1, 2, 50, 70)


def test_test_and_cost(folder, capsys):
    out = run(capsys, "test", "--ckpt_path", folder / "out/lookup/version_0", "--model.eval_mode", "slide")
    assert "test/iou_bright" in out and "test/miou@1x1" in out
    scores = json.loads((folder / "out/lookup/version_0/checkpoints/test.json").read_text())["metrics"]
    assert scores["test/miou"] == scores["test/miou@2x3"] > 0.8
    out = run(capsys, "cost", folder / "out/lookup/version_0", "--output", folder / "cost", "--path", "plain")
    rows = json.loads((folder / "cost" / "cost.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["ViT", "LookupViT 1x1", "LookupViT 2x3", "LookupViT 3x3"]
    assert {row["agrees"] for row in rows} == {"yes"} and rows[0]["heads"] * 1e6 == 24 * 32 * 2


def test_predict_writes_pictures_and_a_row_for_each_file(folder, capsys):
    (folder / "inputs" / "more").mkdir(parents=True)
    for name in ("0.png", "more/0.png"):
        (folder / "inputs" / name).write_bytes((folder / "images" / "test" / "0.png").read_bytes())
    (folder / "inputs" / "broken.png").write_text("no image")
    argv = ["--ckpt_path", folder / "out/lookup/version_0", "--data.predict_path", folder / "inputs"]
    out = run(capsys, "predict", *argv, "--output_dir", folder / "predicted", "--model.budget_gmacs", "0.0003")
    assert "1x1 is the largest trained compressed size" in out and "1 of 3 files could not be read" in out
    (table,) = (folder / "predicted").rglob("segmentations.csv")
    rows = list(csv.DictReader(table.open()))
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert len({row["mask"] for row in rows}) == 3  # equal names do not write over each other
    truth = np.array(Image.open(folder / "masks" / "test" / "0.png"))
    with Image.open(rows[0]["mask"]) as mask:
        assert mask.mode == "P" and mask.size == (60, 40) and len(mask.getpalette()) >= 6
        assert (np.array(mask) == truth).mean() > 0.8
        assert float(rows[0]["bright"]) == pytest.approx(np.array(mask).mean(), abs=1e-5)
    assert Image.open(rows[0]["overlay"]).size == (60, 40)


def test_sweep_scores_every_size_by_miou(folder, capsys):
    argv = ["--output", folder / "sweep", "--batch", "2", "--rounds", "1"]
    out = run(capsys, "sweep", folder / "out/lookup/version_0", *argv)
    rows = json.loads((folder / "sweep" / "sweep.json").read_text())["rows"]
    assert "mIoU" in out and [row["compressed_size"] for row in rows] == [[1, 1], [2, 3]]
    run(capsys, "test", "--ckpt_path", folder / "out/lookup/version_0")
    scores = json.loads((folder / "out/lookup/version_0/checkpoints/test.json").read_text())["metrics"]
    for row, size in zip(rows, ("1x1", "2x3"), strict=True):
        assert row["miou"] == pytest.approx(100 * scores[f"test/miou@{size}"], abs=1e-3)
    assert cli.main(["sweep", str(folder / "out/lookup/version_0"), "--img_size", "64"]) == 2
    assert "a segmenter sees whole images" in capsys.readouterr().err


def test_compare_puts_a_vit_beside_it(folder, capsys):
    vit = "name: vit\ninclude: config.yaml\ntrainer: {max_epochs: 1, check_val_every_n_epoch: 1, logger: true}\n"
    vit += "model: {init_args: {name: vit_tiny_patch4_32, compressed_sizes: null}}\n"
    (folder / "vit.yaml").write_text(vit)
    out = run(capsys, "compare", folder / "vit.yaml", "--output", folder / "compared")
    (row,) = json.loads((folder / "compared" / "compare.json").read_text())
    assert "mIoU" in out and 0 < row["miou"] <= 100 and row["compressed_size"] is None
    out = run(capsys, "ablate", folder / "vit.yaml", "--output", folder / "ablated")
    table = json.loads((folder / "ablated" / "ablation.json").read_text())
    assert table["measure"] == "miou" and table["rows"][0]["miou"] == pytest.approx(row["miou"], abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [["--dynamic_size"], pytest.param(["--compressed_size", "1x1", "2x3"], marks=pytest.mark.slow)],
    ids=["any size", "sizes"],
)
def test_export_equals_the_model(folder, capsys, options):
    path = folder / "model.onnx"
    out = run(capsys, "export", folder / "out/lookup/version_0/checkpoints/last.ckpt", "--output", path, *options)
    assert "logits (B, 2, " in out
    model, program = load_model(folder / "out/lookup/version_0/checkpoints/last.ckpt"), load_program(path)
    images = torch.randn(2, 3, 40, 64) if "--dynamic_size" in options else torch.randn(2, 3, 32, 48)
    index = [] if "--dynamic_size" in options else [torch.tensor(0)]
    with torch.no_grad():
        expected = model(images, (1, 1) if index else None)
    torch.testing.assert_close(program(images, *index), expected, rtol=1e-4, atol=1e-4)


def test_export_refuses_what_it_cannot_write(folder, capsys):
    path = str(folder / "out/lookup/version_0/checkpoints/last.ckpt")
    assert cli.main(["export", path, "--format", "folder", "--output", str(folder / "exported")]) == 2
    assert "a segmenter's checkpoint holds all there is to share" in capsys.readouterr().err
