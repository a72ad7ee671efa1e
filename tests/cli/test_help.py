"""`fit --help`: short, true to the parser, by section, and whole where it is asked for."""

from collections.abc import Callable

import pytest

from lookupvit.cli.common.explain import class_options
from lookupvit.cli.common.help import SHORT
from lookupvit.cli.common.stored import CLASSES
from lookupvit.cli.main import main


@pytest.fixture
def shown(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def show(*argv: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(argv))
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    return show


def test_short_by_default_and_whole_on_request(shown: Callable[..., str]) -> None:
    short, whole = shown("fit", "--help"), shown("fit", "--help_all")
    assert len(short.splitlines()) < 80 and len(whole.splitlines()) > 500
    for options in SHORT.values():
        for name in options:
            assert f"--{name} " in short
            if not name.startswith(("model.", "data.")):
                assert f"--{name}" in whole, name
    classes = {"model": "lookupvit.tasks.ClassificationTask", "data": "datamodules.ImageFolderDataModule"}
    for options in SHORT.values():
        for part, _, option in (name.partition(".") for name in options):
            if part in classes and option:
                assert option in class_options(classes[part]), option
    assert "--trainer.profiler" in whole and "--trainer.profiler" not in short
    assert "predict: a file, a folder or a glob" in shown("predict", "-h")


def test_by_section(shown: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    text = shown("fit", "--help", "trainer")
    assert "--trainer.profiler" in text and "--checkpoint.monitor" not in text
    assert shown("fit", "--trainer.help") == text == shown("fit", "--help=trainer")
    assert "--checkpoint.monitor" in shown("test", "--checkpoint.help")
    for part in ("model", "data"):
        assert all(name in shown("fit", "--help", part) for name in CLASSES[part])
    assert main(["fit", "--help=trainr"]) == 2
    assert "--help trainr is no section: choose one of trainer" in capsys.readouterr().err
