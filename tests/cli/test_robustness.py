"""`lookupvit robustness`: figures against a loop by hand, standard errors, resuming, and one line for each mistake."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TREE_CLASSES, write_tree

from datamodules import CorruptedFolderDataModule
from datamodules.robustness import folder as corrupted_folder
from datamodules.robustness.sets import TestSet
from lookupvit.cli.common.loaded import load
from lookupvit.cli.main import main
from lookupvit.cli.robustness import _row, figures_of

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 1, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args: {{name: {model}, lr: 0.01, args: {{embed_dim: 12, depth: 1, num_heads: 2, patch_size: 8}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 6, num_workers: 0}}
"""
SETS = """
include: base.yaml
data:
  class_path: CorruptedFolderDataModule
  init_args: {corruptions: [contrast, gaussian_noise], severities: [2, 5], shifts: [grayscale], patch_size: 8}
"""
NAMES = ["clean", *(f"corrupted/{name}/{s}" for name in ("contrast", "gaussian_noise") for s in (2, 5)), "grayscale"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LookupViT and a ViT, trained for one epoch, and a configuration of the test, which includes another."""
    root = write_tree(tmp_path_factory.mktemp("r"), TREE_CLASSES, {"train": 2, "val": 4}, size=32)
    for name, model in (("mine", "lookupvit_tiny_patch4_32"), ("plain", "vit_tiny_patch4_32")):
        (root / f"{name}.yaml").write_text(CONFIG.format(model=model, root=root))
        assert main(["fit", "--config", str(root / f"{name}.yaml"), "--name", name, "--output_dir", str(root)]) == 0
    (root / "base.yaml").write_text("data: {init_args: {val_batch_size: 5}}\n")
    (root / "sets.yaml").write_text(SETS)
    return root


def argv_of(place: Path, output: Path, *more: str) -> list[str]:
    config = ["--config", str(place / "sets.yaml"), "--data.root", str(place)]
    return ["robustness", str(place / "mine"), str(place / "plain"), *config, "--output_dir", str(output), *more]


def test_many_models_score_as_each_does_by_hand(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(argv_of(place, tmp_path, "--sizes", "2x2", "3x3")) == 0
    assert "contrast" in capsys.readouterr().out
    models = json.loads((tmp_path / "robustness.json").read_text())["models"]
    assert [(one["model"], one["compressed_size"]) for one in models] == [
        ("mine", "2x2"),
        ("mine", "3x3"),
        ("plain", None),
    ]
    data = CorruptedFolderDataModule(
        str(place), ["contrast", "gaussian_noise"], (2, 5), ["grayscale"], img_size=32, num_workers=0, val_batch_size=99
    )
    ((images, (targets, places)),) = list(data.test_dataloader())
    for row in models:
        size = row["compressed_size"] and tuple(map(int, row["compressed_size"].split("x")))
        checkpoint = place / row["model"] / "version_0" / "checkpoints" / "last.ckpt"
        model = load(checkpoint, "x", [size] if size else None, None, "cpu").task.model
        with torch.no_grad():
            right = ((model(images, size) if size else model(images)).argmax(dim=1) == targets).double()
        top1 = [100 * right[places == i].mean().item() for i in range(6)]
        assert row["clean"] == pytest.approx(top1[0]) and row["sets"]["grayscale"] == pytest.approx(top1[5])
        assert row["top1_by_severity"]["contrast"] == pytest.approx(top1[1:3])
        assert row["top1_by_severity"]["gaussian_noise"] == pytest.approx(top1[3:5])
        assert row["corrupted"] == pytest.approx(sum(top1[1:5]) / 4)
    lines = list(csv.DictReader((tmp_path / "robustness.csv").open()))
    assert len(lines) == 3 * 6 and lines[1]["part"] == "contrast" and lines[1]["images"] == "12"


def test_nothing_is_scored_twice(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made: list[tuple[str, int]] = []
    real = corrupted_folder.corrupt_image

    def counted(image, kind, severity, seed):
        made.append((kind, severity))
        if len(made) == 30:
            raise KeyboardInterrupt
        return real(image, kind, severity, seed)

    monkeypatch.setattr(corrupted_folder, "corrupt_image", counted)
    assert main(argv_of(place, tmp_path)) == 130  # in the third of the corrupted sets of 12 images
    kept = json.loads((tmp_path / "scores" / "mine.json").read_text())
    assert list(kept["images"]) == NAMES[:3]
    made.extend([("", 0)] * 30)
    assert main(argv_of(place, tmp_path)) == 0
    assert made[60:] == [("gaussian_noise", 2)] * 12 + [("gaussian_noise", 5)] * 12
    first = json.loads((tmp_path / "robustness.json").read_text())["models"]
    whole = tmp_path / "whole"
    assert main(argv_of(place, whole)) == 0
    assert json.loads((whole / "robustness.json").read_text())["models"] == first
    del made[:]
    made.extend([("", 0)] * 30)
    assert main(argv_of(place, tmp_path, "--data.severities", "[2]", "--data.num_workers", "0")) == 0
    assert len(made) == 30  # fewer sets, all of them known
    assert main(argv_of(place, tmp_path, "--data.images_per_class", "2")) == 2
    assert "is of another data: remove it to score anew" in capsys.readouterr().err
    for text in ("{", "[]", '{"about": {}, "images": {}, "hits": {"clean": {"2x2": "zz"}}}'):
        (tmp_path / "scores" / "mine.json").write_text(text)
        assert main(argv_of(place, tmp_path)) == 2
        assert "mine.json cannot be read" in capsys.readouterr().err


def test_errors_by_hand() -> None:
    sets = [TestSet("clean"), TestSet("corrupted", "fog", 1), TestSet("corrupted", "fog", 2)]
    hits = [torch.tensor(values).bool() for values in ([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0])]
    rows = [_row(one, hit) for one, hit in zip(sets, hits, strict=True)]
    figures, by_image = figures_of(sets, hits, rows)
    assert (figures["clean"], figures["corrupted"], figures["relative_drop"]) == (75, 37.5, pytest.approx(50))
    # the images' shares 1, 1/2, 0, 0: deviation sqrt((1 + 1/4 - 4 (3/8)^2) / 3), over sqrt 4
    assert figures["corrupted_error"] == pytest.approx(100 * (0.6875 / 3) ** 0.5 / 2)
    assert rows[0]["error"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    # share - clean / 2 is 1/2, 0, -1/2, 0: deviation sqrt(1/6), over 3/4 and sqrt 4
    assert figures["relative_drop_error"] == pytest.approx(100 * (1 / 6) ** 0.5 / 0.75 / 2)
    worse = [hits[0], hits[2], hits[2]]
    other, _ = figures_of(sets, worse, [_row(one, hit) for one, hit in zip(sets, worse, strict=True)], by_image)
    # paired: the second image's share falls from 1/2 to 0, the others' stay
    assert other["corrupted_difference"] == -12.5 and other["clean_difference_error"] == 0
    assert other["corrupted_difference_error"] == pytest.approx(12.5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.lr", "1"], "--model.lr is no option of robustness"),
        (["--labels", "a"], "1 --labels for 2 checkpoints"),
        (["--labels", "a", "a"], "two checkpoints are named a"),
        (["--sizes", "9x9"], "mine at 32x32 px"),
        (["--data.corruptions", '["fogg"]'], "there is no 'fogg'"),
        (["--config", "nothing.yaml"], "config nothing.yaml does not exist"),
    ],
)
def test_mistakes_are_one_line(more: list[str], message: str, place: Path, tmp_path: Path, capsys) -> None:
    assert main(argv_of(place, tmp_path, *more)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit robustness: error")]
    assert len(said) == 1 and message in said[0]


def test_other_data_are_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["robustness", str(place / "mine"), "--output_dir", str(tmp_path)]) == 2
    assert "ImageFolderDataModule has no corrupted images: add --config" in capsys.readouterr().err
    (tmp_path / "no_data.yaml").write_text("trainer: {max_epochs: 1}\n")
    argv = ["robustness", str(place / "mine"), "--config", str(tmp_path / "no_data.yaml")]
    assert main([*argv, "--output_dir", str(tmp_path)]) == 2
    assert "has no data: give one of configs/robustness" in capsys.readouterr().err
