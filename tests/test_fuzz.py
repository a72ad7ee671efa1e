"""Mutated configurations and damaged files: an exit code and one line, or a right answer; never a traceback."""

import copy
import io
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from datamodules.images.folder import CorruptImageError, decode_rgb
from lookupvit.checkpoints.atomic import AtomicCheckpointIO
from lookupvit.checkpoints.find import find_checkpoint, load
from lookupvit.cli.main import main

QUICK = {"config": 12, "image": 8, "checkpoint": 8}
ALL = {"config": 300, "image": 100, "checkpoint": 100}
VALUES = (None, -1, 0, 1, 7, 0.5, math.nan, "abc", "", [], [1, 2, 3], [[2]], {}, {"a": 1}, True)


def cases(kind: str) -> list[Any]:
    """Seeds: a few for every run of the tests, all for the slow ones."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(QUICK[kind], ALL[kind])]
    return [*range(QUICK[kind]), *slow]


def config(tree: Path) -> dict[str, Any]:
    model = {"name": "lookupvit_tiny_patch16_224", "compressed_size": [2, 2], "lr": 0.001, "loss": "softmax"}
    model |= {"args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "drop_path_rate": 0.1}
    data = {"root": str(tree), "img_size": 32, "batch_size": 4, "num_workers": 0, "recipe": "light", "hflip": 0.5}
    return {
        "trainer": {"max_epochs": 1, "gradient_clip_val": 1.0, "precision": "32-true", "accumulate_grad_batches": 1},
        "model": {"class_path": "ClassificationTask", "init_args": model},
        "data": {"class_path": "ImageFolderDataModule", "init_args": data},
        "name": "tiny",
        "save_every_n_steps": 2,
        "checkpoint": {"monitor": "val/top1", "save_top_k": 1},
    }


def places(tree: Any) -> list[tuple[dict, str]]:
    """Every key of a nested mapping."""
    here = [(tree, key) for key in tree]
    return here + [place for value in tree.values() if isinstance(value, dict) for place in places(value)]


def mutate(tree: dict[str, Any], chance: random.Random) -> str:
    """One or two changes of a key, a value, or a character of the text."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 2)):
        owner, key = chance.choice(places(tree))
        kind = chance.choice(("value", "value", "delete", "rename", "nest"))
        value = owner.pop(key)
        if kind == "value":
            owner[key] = chance.choice(VALUES)
        elif kind == "rename":
            owner[key[:-1] + chance.choice("xyz")] = value
        elif kind == "nest":
            owner[key] = {key: value}
    text = yaml.safe_dump(tree)
    if chance.random() < 0.3:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(":-{[\"'\t#&*!%\x00é") + text[at + chance.randint(0, 1) :]
    return text


@pytest.mark.parametrize("seed", cases("config"))
def test_a_mutated_configuration(
    seed: int, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    text = mutate(config(image_tree), random.Random(seed))
    Path("mutant.yaml").write_text(text, encoding="utf-8")
    argv = ["fit", "--config", "mutant.yaml", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    code = main([*argv, "--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--output_dir", "out"])
    printed = capfd.readouterr().err
    assert code in (0, 2), text
    if code == 2:
        errors = [line for line in printed.splitlines() if line.startswith("lookupvit")]
        assert len(errors) == 1 and len(errors[0]) > len("lookupvit fit: error: ") + 5, text
        assert "Traceback" not in printed, text


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut, overwritten, flipped, or grown."""
    kind, at = chance.choice(("cut", "zeros", "flip", "insert", "head")), chance.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "zeros":
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + chance.randbytes(16) + data[at:]
    return chance.randbytes(16) + data[16:]


@pytest.mark.parametrize("seed", cases("image"))
def test_a_damaged_image(seed: int, image_tree: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    source = chance.choice(sorted(image_tree.rglob("*.JPEG")))
    path = tmp_path / f"image{chance.choice(['.jpg', '.png', '.webp', '.JPEG'])}"
    content = io.BytesIO()
    Image.open(source).save(content, chance.choice(["JPEG", "PNG"]))
    path.write_bytes(damaged(content.getvalue(), chance))
    try:
        image = decode_rgb(path)
    except CorruptImageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3


@pytest.mark.parametrize("seed", cases("checkpoint"))
def test_a_damaged_checkpoint(seed: int, tmp_path: Path) -> None:
    want = {"weights": torch.arange(2000.0), "global_step": 3, "hyper_parameters": {"lr": 0.1}}
    AtomicCheckpointIO().save_checkpoint(want, tmp_path / "last.ckpt")
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "last.previous.ckpt")
    path = tmp_path / "last.ckpt"
    path.write_bytes(damaged(path.read_bytes(), random.Random(seed)))
    try:
        got = load(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:  # the damage hit nothing that is read, such as the padding between the parts
        assert torch.equal(got["weights"], want["weights"]) and got["global_step"] == 3
    assert torch.equal(load(find_checkpoint("last", tmp_path))["weights"], want["weights"])


def test_damaged_files_of_every_kind() -> None:
    """A few of `make fuzz`: each in a process of its own, so that a crash is seen too."""
    script = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    argv = [sys.executable, str(script), "--configs", "0", "--mistakes", "0", "--files", "18", "--limit", "120"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {kind} | 3 |" in done.stdout for kind in ("image", "video", "json", "csv", "checkpoint", "shard"))


def test_mistakes_of_users_of_every_kind() -> None:
    """A few of `make fuzz`: names, sizes, classes, run folders, files."""
    script = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    argv = [sys.executable, str(script), "--configs", "0", "--files", "0", "--mistakes", "10", "--limit", "120"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| mistake | 10 |" in done.stdout


def test_the_judge_of_classes_compares_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from fuzz_mistakes import judged_classes

    said = "Warning: the classes are not those of x.ckpt: class 1 is 'b c' in the checkpoint and 'd' in the data. What"
    assert judged_classes(said, ["a", "b_c"], ["a", "d"]) == "ran"
    assert judged_classes(said, ["a", "b_c"], ["a", "e"]).startswith("wrong: not said")
    assert judged_classes("Warning: this class is slow", ["a", "b_c"], ["a", "d"]).startswith("wrong: not said")
    assert judged_classes(said, ["a", "d"], ["a", "d"]).startswith("wrong: a warning of the same")
    assert judged_classes("Warning: this class is slow", ["a"], ["a"]) == "ran"
    fewer = "Warning: the classes are not those of x.ckpt: 2 classes in the checkpoint, 1 in the data. What"
    assert judged_classes(fewer, ["a", "b"], ["a"]) == "ran"
    assert judged_classes(fewer, ["a", "b", "c"], ["a"]).startswith("wrong")
