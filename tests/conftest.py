"""Fixtures shared by all tests: small image trees, written to disk as real files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # several workers of pytest-xdist share few cores

TREE_CLASSES = ("n01440764", "n01443537", "n01484850")  # tench, goldfish, great white shark


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is marked `own_process` in a new process of pytest; its output is shown where it fails."""
    if pyfuncitem.get_closest_marker("own_process") is None or "LOOKUPVIT_OWN_PROCESS" in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", pyfuncitem.nodeid]
    env = {**os.environ, "LOOKUPVIT_OWN_PROCESS": "1"}
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return True


@pytest.fixture(autouse=True)
def own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that one test sets in the environment (Lightning's `seed_everything` does) is not the next one's."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # noted, so that it is put back
    monkeypatch.delenv("PL_GLOBAL_SEED")


def write_image(path: Path, height: int, width: int, seed: int, **save) -> Path:
    """One smooth random RGB image (JPEG compresses it well), written in the format that its name says."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **save)
    return path


def write_tree(root: Path, classes: tuple[str, ...], counts: dict[str, int], size: int | None = None) -> Path:
    """``root/SPLIT/CLASS/0.JPEG``, ...; of sides between 40 and 80 pixels, or of one size."""
    rng = np.random.default_rng(0)
    seed = 0
    for split, count in counts.items():
        for name in classes:
            for number in range(count):
                height, width = (size, size) if size else rng.integers(40, 81, 2).tolist()
                write_image(root / split / name / f"{number}.JPEG", height, width, seed, quality=95)
                seed += 1
    return root


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` and ``val/`` of 3 classes (wnids) with 4 and 2 JPEGs each, of varying size; do not write into it."""
    return write_tree(tmp_path_factory.mktemp("images"), TREE_CLASSES, {"train": 4, "val": 2})


@pytest.fixture
def new_tree(tmp_path: Path) -> Path:
    """The same kind of tree, 32 x 32 pixels, for a test that damages it."""
    return write_tree(tmp_path / "tree", TREE_CLASSES, {"train": 4, "val": 2}, size=32)
