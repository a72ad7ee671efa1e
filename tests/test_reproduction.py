"""Every command that the README and the docs show is one that this project understands."""

import re
import shlex
from pathlib import Path

import pytest

from lookupvit.cli.main import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "REPRODUCTION.md").read_text()


def commands(file: Path) -> list[str]:
    """The lines of the shell blocks that begin with `lookupvit`, without their comments."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", file.read_text(), re.DOTALL)).replace("\\\n", " ")
    return [
        shlex.join(shlex.split(line, comments=True)) for line in blocks.splitlines() if line.startswith("lookupvit")
    ]


COMMANDS = commands(ROOT / "docs" / "REPRODUCTION.md")
SHOWN = sorted({line for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] for line in commands(file)})
OTHERS = [line for line in SHOWN if line not in COMMANDS]


def test_there_are_commands() -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(COMMANDS) == len([line for line in lines if line.strip()]) >= 15
    assert len(OTHERS) >= 30


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
    elif verb == "robustness":
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        options = {arg for arg in argv if arg.startswith("--") and not arg.startswith("--data.")}
        assert stop.value.code == 0 and options <= set(re.findall(r"--\w+", capsys.readouterr().out))
        assert all((ROOT / file).is_file() for file in argv if file.startswith("configs/"))
    else:  # a grid of trainings: its files are there, each of which test_configs.py resolves
        assert verb == "ablate"
        files = [file for part in argv[: argv.index("--seeds")] for file in ROOT.glob(part)]
        assert len(files) >= 10


@pytest.mark.parametrize("command", OTHERS, ids=lambda command: command[10:70])
def test_options_and_files_of_a_shown_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    verb, *argv = shlex.split(command.replace("--ckpt_path CLASSIFIER.ckpt", "--ckpt_path best"))[1:]
    for file in re.findall(r"configs/\S+\.yaml", command):
        assert list(ROOT.glob(file)), file
    configured = verb in ("fit", "validate", "test", "predict") and "configs/" in command and "X.yaml" not in argv
    shown = [*argv, "--print_config"] if configured else [*argv[: verb == "bench"], "--help"]
    with pytest.raises(SystemExit) as stop:  # nothing is read of the data and checkpoints that it names
        main([verb, *shown])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    if configured:
        assert "class_path" in printed
    else:
        options = {arg.split("=")[0] for arg in argv if re.match(r"--\w+(=|$)", arg)}
        accepted = {"--budget_gmacs", "--budget_ms", "--cascade"} if verb == "predict" else set()
        assert options <= set(re.findall(r"--\w+", printed)) | accepted


def test_files_and_options_that_are_named_exist() -> None:
    for file in re.findall(r"(?:configs/[\w/]+(?:\.yaml)?)", TEXT):
        assert (ROOT / file).exists(), file
    for option in ("reuse", "cross_norm", "antialias", "head", "path", "residual_init"):
        assert f"{option}:" in (ROOT / "lookupvit/model/lookupvit.py").read_text()
