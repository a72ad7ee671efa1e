"""The command line, in process: the four commands, checkpoints that yield to it, and one line for each mistake."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import write_config

from lookupvit.callbacks.pictures import picture_grid
from lookupvit.checkpoints.find import find_checkpoint
from lookupvit.cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, image_tree: Path) -> Path:
    """A configuration of a tiny model on the tiny tree, and a place for its output."""
    folder = tmp_path_factory.mktemp("cli")
    return write_config(folder, image_tree, "outputs", depth=2)


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    """The output folder of a finished fit of 1 epoch of 3 steps."""
    assert main(["fit", "--config", str(config)]) == 0
    (last,) = (config.parent / "outputs" / "tiny").glob("version_*/checkpoints/last.ckpt")  # refused runs leave folders
    return last.parents[1]


@pytest.fixture
def last(trained: Path) -> str:
    """The path of its last checkpoint."""
    return str(trained / "checkpoints" / "last.ckpt")


def error_of(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    """Runs a command that must fail: exit code 2, one line on stderr."""
    capsys.readouterr()
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit")]
    assert len(lines) == 1, lines
    return lines[0].partition("error: ")[2]


def test_fit_prints_a_summary_and_writes_its_folder(config: Path, capsys: pytest.CaptureFixture) -> None:
    output = config.parent / "other"
    argv = ["fit", "--config", str(config), "--output_dir", str(output), "--trainer.accumulate_grad_batches", "3"]
    assert main([*argv, "--model.lr=5e-4", "--model.ema_decay", "0.9"]) == 0
    printed = capsys.readouterr().out
    for text in ("lookupvit_tiny_patch16_224", "(2x2)", "32x32", "12 = 1 device x 4 x 3", "0.0005", "1, 1 epoch"):
        assert text in printed, text
    folder = output / "tiny" / "version_0"
    assert (folder / "config.yaml").is_file() and (folder / "checkpoints" / "last.ckpt").is_file()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "val/top1", "val/top1_compressed", "val/top5_lookup", "val/loss"} <= set(
        events.Tags()["scalars"]
    )
    assert any(tag.startswith("lr") for tag in events.Tags()["scalars"])
    assert events.Tags()["images"] == ["train/batch"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["class_names"]) == 3 and "current_model_state" in checkpoint  # raw and averaged weights


def test_pictures_are_unnormalised() -> None:
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    pixels = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    grid = picture_grid(images, mean, std, columns=2)
    assert grid.shape == (3, 14, 14)  # two rows and columns of 4 pixels, 2 between and around them
    torch.testing.assert_close(grid[:, 2:6, 8:12], pixels[1])
    torch.testing.assert_close(grid[:, 8:12, 2:6], pixels[2])


def test_a_saved_configuration_runs_again(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--config", str(trained / "config.yaml"), "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_scored_without_a_configuration(command: str, last: str, capsys: pytest.CaptureFixture) -> None:
    assert main([command, "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]) == 0
    assert f"{'val' if command == 'validate' else 'test'}/top1_compressed" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["last", "best"])
def test_last_and_best_are_found(which: str, config: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["test", "--config", str(config), "--ckpt_path", which, "--trainer.logger", "false"]
    assert main(argv) == 0
    assert "test/top1" in capsys.readouterr().out
    assert find_checkpoint(which, trained).name.startswith({"last": "last.ckpt", "best": "epoch000-top1_"}[which])


def test_predictions_are_written_in_order(
    last: str, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["predict", "--ckpt_path", last, "--data.predict_path", f"{image_tree}/val/*/*.JPEG", "--name", "p"]
    argv += ["--output_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert main(argv) == 0
    folder = tmp_path / "p" / "version_0"
    assert "6 predictions:" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    files = [str(file) for file in sorted((image_tree / "val").glob("*/*.JPEG"))]
    assert [line["file"] for line in lines] == files
    names = torch.load(last, weights_only=True)["class_names"]
    for line in lines:
        top = line["predictions"]
        assert [names[item["index"]] for item in top] == [item["class"] for item in top]
        assert [item["probability"] for item in top] == sorted((item["probability"] for item in top), reverse=True)
        assert sum(item["probability"] for item in top) == pytest.approx(1, abs=1e-4)  # three classes in all
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == files
    assert rows[0]["class_1"] == lines[0]["predictions"][0]["class"]
    assert float(rows[0]["probability_3"]) == lines[0]["predictions"][2]["probability"]


def test_predict_needs_no_training_data(
    last: str, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["predict", "--ckpt_path", last, "--data.predict_path", str(next((image_tree / "val").glob("*/*.JPEG")))]
    argv += ["--data.root", str(tmp_path / "gone"), "--output_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert main(argv) == 0
    assert "1 prediction" in capsys.readouterr().out


def test_the_command_line_wins_over_the_checkpoint_and_says_so(
    last: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [
        "fit",
        "--ckpt_path",
        last,
        "--model.lr",
        "0.25",
        "--trainer.max_epochs",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    assert main([*argv, "--trainer.accelerator", "cpu", "--name", "resumed", "--trainer.log_every_n_steps", "1"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "model.lr" in line)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["model.lr", "0.001", "0.25"]
    assert "from step 3" in printed
    saved = torch.load(tmp_path / "resumed" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["lr"] == 0.25 and saved["global_step"] == 6
    assert {group["initial_lr"] for group in saved["optimizer_states"][0]["param_groups"]} == {0.25}


def test_nothing_is_printed_when_nothing_changed(last: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["test", "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]) == 0
    assert "Changed since" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.lrr 3", "--model.lrr is not an option of ClassificationTask: did you mean --model.lr?"),
        ("--trainer.max_epoch 3", "--trainer.max_epoch is not an option: did you mean --trainer.max_epochs?"),
        ("--data.rot x", "--data.rot is not an option of ImageFolderDataModule: did you mean --data.root?"),
        ("--model.lr abc", "--model.lr: expected float, got abc"),
        ("--trainer.max_epochs x", "--trainer.max_epochs: expected int or null, got x"),
        ("--model.compressed_size abc", "--model.compressed_size: expected a list or null, got abc"),
        ("--data DemoDataModul", "--data DemoDataModul: there is no such class or file: did you mean DemoDataModule?"),
        (
            "--model.name lookupvit_bas_patch16_224",
            "unknown model 'lookupvit_bas_patch16_224': did you mean lookupvit_base",
        ),
        ("--model.args.reus transpose", "takes no argument 'reus'"),
        ("--model.compressed_size [9,9]", "compressed_size (9, 9) does not fit the lookup grid (4, 4)"),
        ("--data.img_size 36", "image size (36, 36) is not a multiple of the patch size (8, 8)"),
        ("--model.num_classes 5", "--model.num_classes 5 contradicts the data's 3: set --data.num_classes instead"),
        ("--model.img_size 64", "--model.img_size 64 contradicts the data's (32, 32): set --data.img_size instead"),
        ("--model.warmup_steps 100", "warm-up of 100 steps does not fit a run of 3 steps"),
        ("--model.lr ${nothing.there}", "nothing.there"),
        ("--data.root /nowhere", "/nowhere"),
        ("--config /nowhere.yaml", "config /nowhere.yaml does not exist"),
        ("--ckpt_path /nowhere.ckpt", "checkpoint /nowhere.ckpt does not exist"),
        ("--name nothing --ckpt_path last", "--ckpt_path last: no checkpoint below"),
        ("--name nothing --ckpt_path best", "--ckpt_path best: no checkpoint below"),
        ("stray", "'stray' belongs to no option"),
    ],
)
def test_a_mistake_is_one_line(options: str, message: str, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert message in error_of(capsys, ["fit", "--config", str(config), *options.split()])


def test_scoring_needs_a_checkpoint(config: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("validate", "test", "predict"):
        assert "--ckpt_path" in error_of(capsys, [command, "--config", str(config)])


def test_a_checkpoint_of_another_patch_or_model_is_one_line(last: str, capsys: pytest.CaptureFixture) -> None:
    argv = ["test", "--ckpt_path", last, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    message = error_of(capsys, [*argv, "--model.args.patch_size", "16"])
    assert "model.embed.proj.weight has shape [32, 3, 8, 8] in it and [32, 3, 16, 16] here" in message
    vit = ["--model.name", "vit_tiny_patch16_224", "--model.compressed_size", "null"]
    assert "model.vit.pos_embed is missing in it (and" in error_of(capsys, [*argv, *vit])


def test_files_that_are_no_checkpoint_are_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.ckpt").write_text("some text")
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.ckpt")  # a pickled class, not plain data
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, message in (
        ("text", "cannot be read"),
        ("code", "holds code (torch.nn.modules.linear.Linear)"),
        ("list", "holds a list"),
    ):
        argv = ["test", "--config", str(config), "--ckpt_path", str(tmp_path / f"{name}.ckpt")]
        assert message in error_of(capsys, argv)


def test_errors_in_configuration_files_name_the_file_or_the_key(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, text, message in (
        ("broken", "trainer: [1, 2\n", "broken.yaml, line 2: this is not YAML"),
        ("unknown", "modl: {class_path: X}\n", "--modl.class_path is not an option"),
        ("nested", "model: {class_path: ClassificationTask, init_args: {nam: x}}\n", "did you mean --model.name?"),
        ("circle", "include: circle.yaml\n", "includes itself"),
        ("lost", "include: [gone.yaml]\n", "gone.yaml, included by"),
        ("list", "- 1\n", "holds no mapping"),
    ):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        assert message in error_of(capsys, ["fit", "--config", str(config), "--config", str(file)])


def test_files_include_others_and_later_ones_win(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a.yaml").write_text("trainer: {max_epochs: 3, precision: 64-true}\n")
    (tmp_path / "base" / "b.yaml").write_text("include: a.yaml\ntrainer: {max_epochs: 5}\n")
    (tmp_path / "top.yaml").write_text(
        f"include: [{config}, base/b.yaml]\ntrainer: {{max_time: 00:01:00:00}}\n"
        "model: {class_path: ClassificationTask, init_args: {lr: 0.5, min_lr: '${.lr}'}}\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(tmp_path / "top.yaml"), "--model.weight_decay", "0.125", "--print_config"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for text in ("max_epochs: 5", "precision: 64-true", "lr: 0.5", "weight_decay: 0.125", "embed_dim: 32"):
        assert text in printed, text


def test_a_mistake_leaves_nothing_else_on_stderr(tmp_path: Path) -> None:
    argv = [sys.executable, "-W", "ignore", "-m", "lookupvit", "fit", "--config", "nothing.yaml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    here = f"config nothing.yaml does not exist: check the path (here is {tmp_path})"
    assert (done.returncode, done.stderr) == (2, f"lookupvit fit: error: {here}\n")


def test_unknown_commands_and_help(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0 and main([]) == 0
    assert "lookupvit predict" in capsys.readouterr().out
    assert error_of(capsys, ["fitt"]) == "unknown command 'fitt': did you mean fit?"


def test_every_command_names_a_function_and_help_imports_none_of_them() -> None:
    for place, _ in COMMANDS.values():
        module, _, function = place.rpartition(".")
        assert callable(getattr(importlib.import_module(f"lookupvit.cli.{module}"), function)), place
    code = "import sys, lookupvit; from lookupvit.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_lightnings_own_checkpoint_of_a_cluster_is_looked_for(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["fit", "--config", str(config), "--output_dir", str(tmp_path), "--ckpt_path", "hpc"]
    assert "hpc" in error_of(capsys, argv)


def test_a_bug_keeps_its_traceback_and_debug_shows_one(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match="loss 'hinge'"):
        main(["fit", "--config", str(config), "--model.loss", "hinge", "--debug"])
    monkeypatch.setenv("LOOKUPVIT_DEBUG", "1")
    with pytest.raises(ValueError, match="loss 'hinge'"):
        main(["fit", "--config", str(config), "--model.loss", "hinge"])
    monkeypatch.delenv("LOOKUPVIT_DEBUG")
    argv = ["fit", "--config", str(config), "--model.args.depth", "two"]
    assert error_of(capsys, argv).startswith("depth='two' is no positive integer")
    monkeypatch.setattr("lookupvit.tasks.classifier.create_model", lambda *_, **__: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        main(["fit", "--config", str(config)])


def test_two_processes_score_as_one_does(last: str, image_tree: Path, tmp_path: Path) -> None:
    root = odd_tree(tmp_path / "odd", image_tree, image_tree / "val" / "n01440764" / "0.JPEG")
    results = []
    for devices, strategy in (("1", "auto"), ("2", "ddp")):
        argv = ["test", "--ckpt_path", last, "--data.root", str(root), "--data.batch_size", "2", "--name", devices]
        argv += ["--output_dir", str(tmp_path), "--trainer.accelerator", "cpu", "--trainer.devices", devices]
        argv += ["--trainer.strategy", strategy]
        if devices == "1":
            assert main(argv) == 0
        else:  # the second process starts from the command line of the first
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "lookupvit", *argv]
            done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
            assert done.returncode == 0, done.stderr
        events = EventAccumulator(str(tmp_path / devices / "version_0")).Reload()
        results.append({tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if "test" in tag})
    assert set(results[0]) == set(results[1]) and "test/top1" in results[0]
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def odd_tree(root: Path, tree: Path, extra: Path) -> Path:
    """A tree whose 7 validation images two processes cannot share evenly."""
    if not root.exists():
        root.mkdir()
        (root / "train").symlink_to(tree / "train")
        for file in [*(tree / "val").glob("*/*.JPEG")]:
            target = root / "val" / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        (root / "val" / extra.parent.name / "extra.JPEG").write_bytes(extra.read_bytes())
    return root
