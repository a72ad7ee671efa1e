"""docs/LIBRARY.md: every recipe runs, has at most ten lines, and gives what its comments say."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from lookupvit import LookupViT, ViT, save_weights
from lookupvit.cli.main import main

DOC = Path(__file__).parents[1] / "docs" / "LIBRARY.md"
TINY = {"img_size": 32, "patch_size": 4, "num_classes": 3, "embed_dim": 24, "depth": 1, "num_heads": 2}


def recipes() -> list[tuple[str, str]]:
    """(language, code) of each block, in order."""
    return re.findall(r"```(python|bash)\n(.*?)```", DOC.read_text(), re.DOTALL)


def test_every_recipe_runs(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image_tree, "images")
    save_weights(LookupViT(**TINY, compressed_size=(3, 3)), "model.ckpt")
    save_weights(ViT(**TINY), "vit.safetensors")
    scope: dict = {"torch": torch}
    shapes: dict[str, tuple] = {}
    for number, (language, code) in enumerate(recipes()):
        assert len([line for line in code.splitlines() if line.strip()]) <= 10, code
        if language == "bash":
            (command,) = code.replace("\\\n", " ").strip().splitlines()
            program, *argv = shlex.split(command)
            with contextlib.redirect_stdout(io.StringIO()):
                assert program == "lookupvit" and main(argv) == 0, command
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, f"LIBRARY.md, recipe {number}", "exec"), scope)
        shapes |= {
            name: tuple(value.shape) for name, value in scope.items() if type(value).__name__ in ("Tensor", "ndarray")
        }
    assert shapes["prefix"] == (2, 64, 512) and shapes["summary"] == (1, 25, 192)
    assert shapes["attention"] == (1, 3, 25, 196) and shapes["probabilities"] == (3, 3)
    assert [tuple(value.shape) for value in scope["maps"]] == [(1, 192, 14, 14)] * 3
    assert scope["again"].compressed_size == (2, 2) and scope["for_my_classes"].num_classes == 7
    assert sum(len(batch["files"]) for batch in scope["answers"]) == len(list(Path("images/val").glob("*/*")))
    assert 0 <= scope["scores"]["test/top1"] <= 1 and sum(len(batch["captions"]) for batch in scope["captions"]) == 4
    assert len(list(Path("outputs/longer").glob("version_0/checkpoints/last.ckpt"))) == 1
    for name in ("motion", "scenes"):  # checkpoints of any Trainer are those of the command line
        argv = ["validate", "--ckpt_path", f"{name}.ckpt", "--trainer.accelerator", "cpu", "--name", f"again_{name}"]
        assert main(argv) == 0
    assert shapes["features"] == (1, 25 + 196, 192)
    torch.testing.assert_close(scope["in_timm"].heads["lookup"].fc.weight, scope["again"].heads["lookup"].fc.weight)
    assert scope["finer"].embed.grid_size == (12, 16)
    assert scope["classify"].model.config.compressed_size == (2, 2) and scope["classifier"].num_labels == 7
    assert scope["llava"].config.vision_config.compressed_size == (2, 2) and shapes["stage"] == (1, 24, 8, 8)


def test_the_readme_links_the_recipes() -> None:
    assert "docs/LIBRARY.md" in (DOC.parents[1] / "README.md").read_text()
