"""`lookupvit ablate`: its arithmetic, its files, and that it trains nothing twice."""

import json
from pathlib import Path

import pytest

from lookupvit.cli import runs
from lookupvit.cli.ablate import markdown, rows_of
from lookupvit.cli.main import main

BASE = """
trainer: {{accelerator: cpu, max_epochs: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args:
    name: lookupvit_tiny_patch16_224
    compressed_size: [2, 2]
    args: {{embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 4, num_workers: 0}}
"""


def run(top1: float, seconds: float | None = 10.0) -> dict:
    return {"compressed_size": "2x2", "parameters": 1000, "gmacs": 0.002, "top1": top1, "seconds": seconds}


def test_differences_are_by_seed() -> None:
    rows = rows_of({"base": [run(50.0), run(54.0)], "other": [run(51.0), run(57.0, None)]})
    assert (rows[0]["top1"], rows[0]["difference"], rows[0]["difference_std"]) == (52.0, 0.0, 0.0)
    # differences 1 and 3: mean 2, standard deviation sqrt(2)
    assert (rows[1]["difference"], rows[1]["difference_std"]) == (2.0, pytest.approx(2**0.5))
    assert rows[1]["top1_std"] == pytest.approx(18**0.5) and rows[1]["fit_seconds"] == 10.0
    assert markdown(rows).splitlines()[3] == "| other | 2x2 | 0.00 M | 2 | 54.00 ± 4.24 | +2.00 ± 1.41 | 10 s |"
    assert rows_of({"base": [run(50.0)]})[0]["difference_std"] is None


@pytest.fixture
def grid(tmp_path: Path, image_tree: Path) -> list[str]:
    (tmp_path / "base.yaml").write_text(BASE.format(root=image_tree))
    (tmp_path / "narrow.yaml").write_text(
        # args are one option, which the later file replaces whole
        "include: base.yaml\nmodel: {class_path: ClassificationTask, init_args: {args: {embed_dim: 32, depth: 2, "
        "num_heads: 2, patch_size: 8, lookup_mlp_ratio: 0.25}}}\n"
    )
    return [str(tmp_path / "base.yaml"), str(tmp_path / "narrow.yaml")]


def test_a_grid_is_trained_once(
    grid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["ablate", *grid, "--seeds", "0", "1", "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    base, narrow = found["rows"]
    # two blocks' lookup MLP of width 8 in place of 16: (32 + 32 + 1) fewer numbers for each of the 8
    assert base["parameters"] - narrow["parameters"] == 2 * 8 * 65
    assert [one["seed"] for one in found["runs"]["narrow"]] == [0, 1]
    for row, name in ((base, "base"), (narrow, "narrow")):
        assert row["top1"] == pytest.approx(sum(one["top1"] for one in found["runs"][name]) / 2)
    for one in found["runs"]["base"]:
        (row,) = one["validations"]  # of the one epoch; validation and test images are the same here
        assert row["step"] == one["steps"] - 1 and row["val/top1"] == pytest.approx(one["metrics"]["test/top1"])
        assert row["train/loss"] > 0
    for ending in ("csv", "md", "png"):
        assert (tmp_path / "out" / f"ablation.{ending}").stat().st_size > 100
    monkeypatch.setattr(runs, "_train", None)  # a second training would be an error
    assert main(argv) == 0
    again = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert again["rows"] == found["rows"]
    assert "4 of 4 runs are finished" in capsys.readouterr().out
    assert main([*argv, "--model.lr", "0.5"]) == 2
    assert "was run with --model.lr" in capsys.readouterr().err


def test_mistakes_are_one_line(grid: list[str], capsys: pytest.CaptureFixture) -> None:
    for argv, message in (
        ([grid[0], grid[0]], "two configurations are named base"),
        ([*grid, "--seeds", "1", "1"], "--seeds 1 1: each once"),
        (["nothing.yaml"], "nothing.yaml does not exist"),
    ):
        assert main(["ablate", *argv]) == 2
        assert message in capsys.readouterr().err
