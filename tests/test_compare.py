"""`lookupvit compare`: two tiny models through the real commands, and what it leaves behind."""

import json

import pytest
from PIL import Image

from lookupvit.analysis.plots import read_scalars
from lookupvit.cli import main

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 1, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args: {{name: {model}, args: {{embed_dim: 32, depth: 1, num_heads: 2, patch_size: 8}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 4, num_workers: 0}}
name: {name}
"""


def test_two_models_one_table(tmp_path, image_tree, capsys):
    configs = []
    for name, model in (("mine", "lookupvit_tiny_patch4_32"), ("plain", "vit_tiny_patch4_32")):
        configs.append(str(tmp_path / f"{name}.yaml"))
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(model=model, root=image_tree, name=name))
    out = tmp_path / "out"
    assert main(["compare", *configs, "--output_dir", str(out), "--title", "both", "--trainer.max_epochs", "2"]) == 0
    rows = json.loads((out / "both.json").read_text())
    assert [row["run"] for row in rows] == ["mine", "plain"]
    # 12 images in batches of 4, the last one whole: 3 steps an epoch, and the shared option made it two epochs
    assert [row["steps"] for row in rows] == [6, 6]
    assert rows[0]["compressed_size"] == [3, 3] and rows[1]["compressed_size"] is None
    for row in rows:
        assert read_scalars(out / row["run"] / "version_0", "test/top1")[1] == [] and row["images_per_second"] > 0
        assert row["top1"] == pytest.approx(
            100 * read_scalars(out / row["run"] / "version_0", "val/top1")[1][-1], abs=1e-3
        )  # the tree has no test split: its validation images are tested, with the last weights
    with Image.open(out / "both.png") as picture:
        assert picture.width > 1000
    printed = capsys.readouterr().out
    assert "epoch 2/2  step 6" in printed  # no terminal: a line an epoch
    assert "mine" in printed and "GMACs" in printed


def test_mistakes_are_one_line(capsys, tmp_path):
    assert main(["compare"]) == 2
    assert "the following arguments are required: CONFIG" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.yaml")]) == 2
    error = capsys.readouterr().err
    assert "none.yaml does not exist" in error and error.count("\n") == 1
