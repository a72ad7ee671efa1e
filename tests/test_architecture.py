"""The map is true: what ARCHITECTURE.md names exists, every room is on it, and imports run one way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:lookupvit|datamodules|tests|docs|configs|benchmarks)/[\w./]*)`", MAP)))
ROOMS = sorted(
    {
        f"{file.parent.relative_to(ROOT)}/"
        for package in ("lookupvit", "datamodules")
        for file in (ROOT / package).rglob("*.py")
        if file.parent.name not in ("lookupvit", "datamodules") or file.parent.parent != ROOT
    }
)


@pytest.mark.parametrize("name", [name for name in NAMED if "NEW" not in name])
def test_what_the_map_names_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_map(room: str) -> None:
    assert f"| `{room}` |" in MAP


def test_rooms_are_small() -> None:
    for package in ("lookupvit", "datamodules"):
        files = list((ROOT / package).rglob("*.py"))
        assert not [file for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 300]
        assert all(len(list(folder.glob("*.py"))) <= 20 for folder in {file.parent for file in files})


def test_imports_run_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
