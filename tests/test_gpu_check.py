"""`benchmarks/gpu_check.py` on a CPU, with nothing installed but what it promises to do with."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
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
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=env)
    rows = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["rows"]
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "cell.log").read_text()
    assert [(row["cell"], row["result"]) for row in rows] == [("fsdp2", "ok"), ("fsdp2 -> fsdp2", "ok")]
    assert rows[1]["difference"] == 0 and rows[1]["steps"] == 20
    assert "| fsdp2 -> fsdp2 | ok |" in (tmp_path / "out" / "gpu_check.md").read_text()
