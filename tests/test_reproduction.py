"""Every command of docs/REPRODUCTION.md is one that this project understands."""

import re
import shlex
from pathlib import Path

import pytest

from lookupvit.cli.main import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "REPRODUCTION.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line.strip()
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15 and all(command.startswith("lookupvit ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[10:60])
def test_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    verb, *argv = shlex.split(command)[1:]
    if verb in ("fit", "test"):
        with pytest.raises(SystemExit) as stop:
            main([verb, *argv, "--print_config"])
        assert stop.value.code == 0 and "class_path" in capsys.readouterr().out
    elif verb == "cost":
        assert main([verb, *argv]) == 0
        assert "GMAC" in capsys.readouterr().out
    else:  # a grid of trainings: its files are there, each of which test_configs.py resolves
        assert verb == "ablate"
        files = [file for part in argv[: argv.index("--seeds")] for file in ROOT.glob(part)]
        assert len(files) >= 10


def test_files_and_options_that_are_named_exist() -> None:
    for file in re.findall(r"(?:configs/[\w/]+(?:\.yaml)?)", TEXT):
        assert (ROOT / file).exists(), file
    for option in ("reuse", "cross_norm", "antialias", "head", "path"):
        assert f"{option}:" in (ROOT / "lookupvit/model/lookupvit.py").read_text()
