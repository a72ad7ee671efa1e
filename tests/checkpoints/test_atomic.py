"""Checkpoint files: whole or not there, damage found and named, a full disk told in one line."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lookupvit.checkpoints.atomic import AtomicCheckpointIO, CheckpointWriteError, damage
from lookupvit.checkpoints.find import find_checkpoint, load


def write(path: Path, value: float, size: int = 1000) -> Path:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.full((size,), value)}, path)
    return path


def value(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weights"][0])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more than ``size`` bytes into a file: as a full disk does, in the middle of one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_one_before_is_kept_and_nothing_else(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "last.ckpt", number)
        write(tmp_path / "best.ckpt", number)
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
    assert [value(tmp_path / f"{name}.ckpt") for name in ("best", "last", "last.previous")] == [2, 2, 1]


def test_a_full_disk_leaves_the_checkpoints_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt", 1)
    with (
        largest_file(100_000),
        pytest.raises(CheckpointWriteError, match=r"last.ckpt: .*GB free there.*--ckpt_path last") as error,
    ):
        write(tmp_path / "last.ckpt", 2, size=1_000_000)
    assert "\n" not in str(error.value) and "File too large" in str(error.value)
    assert os.listdir(tmp_path) == ["last.ckpt"] and value(tmp_path / "last.ckpt") == 1


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "last.ckpt", 1)

    def killed(checkpoint: dict, file) -> None:
        file.write(b"PK half of it")
        raise KeyboardInterrupt  # as little is tidied up as after SIGKILL

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "last.ckpt", 2)
    assert value(tmp_path / "last.ckpt") == 1 and find_checkpoint("last", tmp_path) == tmp_path / "last.ckpt"
    monkeypatch.undo()
    write(tmp_path / "last.ckpt", 3)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "last.previous.ckpt"]


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda data: data[: len(data) // 2], "cut short or damaged"),
        (lambda data: b"", "it is empty"),
        (lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], "has a wrong checksum"),
    ],
)
def test_damage_is_named_and_last_falls_back(harm, found: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (1, 2):
        last = write(tmp_path / "version_0" / "last.ckpt", number)
    assert damage(last) is None
    os.utime(last.with_name("last.previous.ckpt"), (1, 1))
    last.write_bytes(harm(last.read_bytes()))
    assert found in damage(last)
    chosen = find_checkpoint("last", tmp_path)
    printed = capsys.readouterr().err
    assert value(chosen) == 1 and str(last) in printed and found in printed
    with pytest.raises(ValueError, match=found):
        load(last)
    chosen.write_bytes(b"PK")
    with pytest.raises(ValueError, match="none of the 2 checkpoints"):
        find_checkpoint("last", tmp_path)


def test_the_times_of_a_copy_do_not_say_which_is_last(tmp_path: Path) -> None:
    for at, name in enumerate(("a/last.ckpt", "b/last.ckpt", "b/last.previous.ckpt")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        torch.save({"value": name}, file)
        os.utime(file, (at, at))  # as they were copied: the previous one after the last
    assert find_checkpoint("last", tmp_path) == tmp_path / "b" / "last.ckpt"
    os.utime(tmp_path / "a" / "last.ckpt", (9, 9))  # this run went on
    assert find_checkpoint("last", tmp_path) == tmp_path / "a" / "last.ckpt"
