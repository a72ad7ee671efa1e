"""`benchmarks/gpu_check.py` on a CPU, with nothing installed but what it promises to do with."""

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
gpu_check, direct = (importlib.import_module(name) for name in ("gpu_check", "gpu_check_direct"))
ALLOWED = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse[signatures,omegaconf]", "omegaconf")


def only(folder: Path) -> Path:
    """A folder of links to these packages and what they need, in place of site-packages."""
    todo, seen = list(ALLOWED), set()
    while todo:
        wanted = Requirement(todo.pop())
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found = importlib.metadata.distribution(wanted.name)
        for line in found.requires or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (wanted.extras or {""})):
                todo.append(need.name + (f"[{','.join(need.extras)}]" if need.extras else ""))
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def test_a_training_and_a_resume_across_strategies(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    site = only(tmp_path / "site")
    assert not (site / "rich").exists() and not (site / "timm").exists() and not (site / "av").exists()
    argv = [sys.executable, "-S", str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick"]
    argv += ["--python_options=-S", "--strategies", "fsdp2", "--output", str(tmp_path / "out")]
    argv += ["--only", "strategies", "graph", "resumes"]
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=env)
    rows = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["rows"]
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "cell.log").read_text()
    cells = ["fsdp2", "graph capture", "fsdp2 -> fsdp2"]
    assert [(row["cell"], row["result"]) for row in rows] == [(name, "ok") for name in cells]
    assert rows[2]["difference"] == 0 and rows[2]["steps"] == 20
    assert "| fsdp2 -> fsdp2 | ok |" in (tmp_path / "out" / "gpu_check.md").read_text()


DIRECT = [cell for cell in gpu_check.cells([], True, list(gpu_check.GROUPS)) if not cell["compile"]]


@pytest.mark.parametrize("cell", DIRECT, ids=lambda cell: cell["name"])
def test_a_cell_on_random_tensors(cell: dict) -> None:
    figures = direct.run(cell, "cpu", quick=True)
    assert figures["ms/step"] > 0
    if cell["kind"] != "graph":
        assert figures["steps"] == direct.STEPS and figures["last loss"] > 0


def test_the_cells_are_all_that_was_asked_for() -> None:
    names = {cell["name"] for cell in gpu_check.cells(list(gpu_check.STRATEGIES), False, list(gpu_check.GROUPS))}
    for precision in ("32-true", "bf16-mixed", "bf16-true", "16-mixed"):
        assert {f"image, {precision}", f"image, {precision}, compiled"} <= names
    assert {"ddp", "ddp, compiled", "fsdp2", "ddp -> fsdp2", "LoRA", "graph capture"} <= names
    assert {"video, bf16-mixed", "caption, bf16-mixed"} <= names


def test_a_cell_that_does_not_learn_is_an_error() -> None:
    model, batch = direct.build("image", True, lr=1e-12)
    with pytest.raises(RuntimeError, match="the loss went from"):
        direct.train(model, batch, "32-true", "cpu")
