"""`lookupvit compare`: two tiny models through the real commands, and what it leaves behind."""

import json
import shlex

import pytest
from PIL import Image

from lookupvit.analysis.plots import read_scalars
from lookupvit.cli.main import main

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
    with Image.open(out / "both_answers.png") as picture:
        assert picture.width == 1000
    printed = capsys.readouterr().out
    assert "epoch 2/2  step 6" in printed  # no terminal: a line an epoch
    assert "mine" in printed and "GMACs" in printed
    commands = [shlex.split(line) for line in printed.split("to try next:")[1].strip().splitlines()]
    assert [words[:2] for words in commands] == [["lookupvit", name] for name in ("sweep", "predict", "app")]
    assert commands[0][2:4] == commands[2][2:4] == [row["checkpoint"] for row in rows]
    assert main([*commands[1][1:], "--output_dir", str(tmp_path / "next"), "--trainer.accelerator", "cpu"]) == 0


SCENES = """
trainer: {{accelerator: cpu, max_epochs: 1, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: CaptioningTask
  init_args:
    name: {model}
    args: {{embed_dim: 32, depth: 1, num_heads: 2, patch_size: 8}}
    decoder: {{depth: 1, num_heads: 2, context_length: 32}}
    freeze_encoder: false
    generation: {{method: greedy}}
data:
  class_path: ScenesDataModule
  init_args: {{root: {root}, train_images: 8, val_images: 4, max_objects: 2, size: 32, img_size: 32, batch_size: 4,
    num_workers: 0}}
name: {name}
"""


def test_captioners_are_compared_by_the_share_of_true_captions(tmp_path, capsys):
    configs = []
    for name, model in (("mine", "lookupvit_tiny_patch4_32"), ("plain", "vit_tiny_patch4_32")):
        configs.append(str(tmp_path / f"{name}.yaml"))
        text = SCENES.format(model=model, root=tmp_path / "scenes", name=name)
        (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["compare", *configs, "--output_dir", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    for row in rows:
        assert 0 <= row["true_captions"] <= 100 and row["gmacs"] > 0 and row["images_per_second"] > 0
    with Image.open(tmp_path / "out" / "compare_answers.png") as picture:
        assert picture.width == 1000
    commands = [shlex.split(line) for line in capsys.readouterr().out.split("to try next:")[1].strip().splitlines()]
    assert [words[1] for words in commands] == ["predict", "predict", "test"]
    assert main([*commands[2][1:], "--output_dir", str(tmp_path / "next"), "--trainer.accelerator", "cpu"]) == 0


def test_mistakes_are_one_line(capsys, tmp_path):
    assert main(["compare"]) == 2
    assert "the following arguments are required: CONFIG" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.yaml")]) == 2
    error = capsys.readouterr().err
    assert "none.yaml does not exist" in error and error.count("\n") == 1


def test_equal_names_and_two_output_folders_are_refused_before_training(capsys, tmp_path, image_tree):
    files = [str(tmp_path / f"{file}.yaml") for file in "abc"]
    for file, name, output in zip(files, ("one", "one", "two"), ("x", "x", "y"), strict=True):
        text = CONFIG.format(model="vit_tiny_patch4_32", root=image_tree, name=name)
        (tmp_path / file).write_text(text + f"output_dir: {tmp_path / output}\n")
    assert main(["compare", *files[:2]]) == 2
    assert f"{files[0]} and {files[1]} are both named one" in capsys.readouterr().err
    for command in ("compare", "ablate"):
        assert main([command, files[0], files[2]]) == 2
        error = capsys.readouterr().err
        assert f"{files[0]} writes to {tmp_path / 'x'}" in error and "give --output_dir" in error
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_the_configurations_own_output_folder(tmp_path, image_tree):
    file = tmp_path / "one.yaml"
    text = CONFIG.format(model="vit_tiny_patch4_32", root=image_tree, name="one")
    file.write_text(text + f"output_dir: {tmp_path / 'own'}\n")
    assert main(["compare", str(file), "--trainer.limit_train_batches", "1"]) == 0
    assert (tmp_path / "own" / "compare.json").is_file() and (tmp_path / "own" / "one" / "version_0").is_dir()
    assert main(["ablate", str(file), "--trainer.limit_train_batches", "1"]) == 0
    assert (tmp_path / "own" / "ablation" / "ablation.json").is_file()
