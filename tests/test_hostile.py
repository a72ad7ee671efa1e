"""Files may not choose code, a command, an address or a path to write to; `benchmarks/hostile.py` has many more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.loading.untrusted import inside
from lookupvit import trust
from lookupvit.cli.common.stored import CLASSES
from lookupvit.cli.main import main
from lookupvit.model.zoo import create_model
from lookupvit.weights.file import save_weights

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "hostile.py"
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false", "--output_dir=out"]


@pytest.fixture
def checkpoint(tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A checkpoint of three classes that was trained on `image_tree`."""
    monkeypatch.chdir(tmp_path)
    args = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "compressed_size": (2, 2)}
    save_weights(create_model("lookupvit_tiny_patch16_224", num_classes=3, img_size=32, **args), "last.ckpt")
    content = torch.load("last.ckpt", weights_only=True)
    data = {"root": str(image_tree), "img_size": 32, "num_workers": 0, "batch_size": 2}
    kind = "datamodules.images.imagenet.ImageFolderDataModule"
    return {**content, "data_config": {"class_path": kind, "init_args": data}}


def test_hostile(checkpoint: dict) -> None:
    """Each fourteenth case, in processes of their own."""
    argv = [sys.executable, str(SCRIPT), "--every", "14"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing ran, nothing was written or fetched" in done.stdout


def test_a_command_of_a_checkpoint_does_not_run(checkpoint: dict, capsys: pytest.CaptureFixture) -> None:
    data = {"root": "pipe:touch ran; cat {}", "img_size": 32, "num_classes": 3}
    checkpoint["data_config"] = {"class_path": "WebDatasetDataModule", "init_args": data}
    torch.save(checkpoint, "evil.ckpt")
    assert main(["test", "--ckpt_path", "evil.ckpt", *CPU]) == 2
    assert "--data.root 'pipe:touch ran" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_the_users_own_root_wins_over_a_hostile_one(checkpoint: dict, image_tree: Path) -> None:
    checkpoint["data_config"]["init_args"]["root"] = "pipe:touch ran"
    torch.save(checkpoint, "evil.ckpt")
    assert main(["test", "--ckpt_path", "evil.ckpt", "--data.root", str(image_tree), *CPU]) == 0
    assert not Path("ran").exists()


def test_a_checkpoint_alone_still_tests(checkpoint: dict) -> None:
    torch.save(checkpoint, "mine.ckpt")
    assert main(["test", "--ckpt_path", "mine.ckpt", *CPU]) == 0


def test_local_shards_of_a_checkpoint_and_a_pipe_of_the_user(checkpoint: dict, image_tree: Path) -> None:
    assert main(["make-shards", str(image_tree), "my shards", "--split", "val"]) == 0
    data = {"root": "my shards", "img_size": 32, "num_workers": 0, "batch_size": 2}
    checkpoint["data_config"] = {"class_path": "datamodules.shards.datamodule.WebDatasetDataModule", "init_args": data}
    torch.save(checkpoint, "mine.ckpt")
    assert main(["test", "--ckpt_path", "mine.ckpt", *CPU]) == 0
    Path("my shards").rename("shards")
    assert main(["test", "--ckpt_path", "mine.ckpt", "--data.root", "pipe:cat shards/{}", *CPU]) == 0


def test_a_class_outside_is_imported_only_if_the_user_names_it(
    checkpoint: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("theirs_of_test.py").write_text(
        "from datamodules import ImageFolderDataModule\nclass Data(ImageFolderDataModule): pass\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    checkpoint["data_config"]["class_path"] = "theirs_of_test.Data"
    torch.save(checkpoint, "theirs.ckpt")
    assert main(["test", "--ckpt_path", "theirs.ckpt", *CPU]) == 2
    assert "'theirs_of_test.Data', which is not of this project" in capsys.readouterr().err
    assert "theirs_of_test" not in sys.modules
    assert main(["test", "--ckpt_path", "theirs.ckpt", "--data", "theirs_of_test.Data", *CPU]) == 0


@pytest.mark.parametrize("command", ["knn", "attend", "sweep", "robustness"])
def test_no_command_imports_a_class_that_a_file_names(
    command: str, checkpoint: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evil_of_test.py").write_text("raise SystemExit('imported')\nclass Data: pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    checkpoint["data_config"]["class_path"] = "evil_of_test.Data"
    torch.save(checkpoint, "evil.ckpt")
    assert main([command, "evil.ckpt", *(["--path", "."] if command == "attend" else [])]) == 2
    assert "'evil_of_test.Data', which is not of this project" in capsys.readouterr().err


def test_data_are_rendered_where_the_user_says(checkpoint: dict, capsys: pytest.CaptureFixture) -> None:
    data = {"root": "written", "train_per_class": 1, "val_per_class": 1, "img_size": 32, "num_workers": 0}
    checkpoint["data_config"] = {"class_path": "DemoDataModule", "init_args": data}
    torch.save(checkpoint, "demo.ckpt")
    assert main(["test", "--ckpt_path", "demo.ckpt", *CPU]) == 2
    assert "nothing is written where a file says" in capsys.readouterr().err and not Path("written").exists()
    main(["test", "--ckpt_path", "demo.ckpt", "--data.root", "written", *CPU])  # the classes differ, which comes later
    assert (Path("written") / "demo.json").is_file()


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "~/a", "a\nb", "\x1b[2J", "C:\\a", "http://a", 7, None])
def test_names_that_leave_the_folder(name: object) -> None:
    with pytest.raises(ValueError, match="names the file"):
        inside(name, "it")


@pytest.mark.parametrize("name", ["a b", "a;b", "$(a)", "`a`", "a'b", "-a", "a//b", "a|b", "a/-b", "a&b", "a?b", "a#b"])
def test_names_that_a_shell_or_an_address_would_read(name: str) -> None:
    if "//" not in name:
        assert inside(name, "it") == name  # of a local file
    with pytest.raises(ValueError, match="names the file"):
        inside(name, "it", address=True)
    assert inside("val/x-0001.tar", "it", address=True) == "val/x-0001.tar"


def test_plain_data() -> None:
    trust.check_plain({"a": [1, 2.0, "b", None, {"c": True}], "d": (1, 2)}, "it")
    for bad in ({"a": "${oc.env:X}"}, {"a": {"class_path": "x.Y"}}, {"a": object()}, {"num_workers": 10**6}):
        with pytest.raises(ValueError, match="it"):
            trust.check_plain(bad, "it")


def test_marks_tell_the_checkpoints_word_from_the_users() -> None:
    part = trust.marked({"data": {"class_path": "DemoDataModule", "init_args": {"root": "theirs", "seed": 1}}})["data"]
    part["init_args"]["predict_path"] = "s3://of/the/user"
    assert trust.settle(part, "data", CLASSES["data"], fitting=False) == {"root"}
    assert part["init_args"] == {"root": "theirs", "seed": 1, "predict_path": "s3://of/the/user"}
    default = trust.marked({"data": {"class_path": "DemoDataModule", "init_args": {"root": "demo_data"}}})["data"]
    assert trust.settle(default, "data", CLASSES["data"], fitting=False) == set()  # this project's own choice


def test_a_sharded_index_of_torch_passes(tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp

    from lookupvit.checkpoints.sharded import check_sharded

    dcp.save({"w": torch.ones(3), "lr": 0.1, "names": ["a"]}, checkpoint_id=tmp_path, no_dist=True)
    check_sharded(tmp_path)
    assert json.dumps(sorted(file.name for file in tmp_path.iterdir())).count(".metadata") == 1
