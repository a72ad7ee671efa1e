"""Writes files that are complete or do not exist, even on a full disk or in a killed process; prints whole lines."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(OSError):
    """A file could not be written. Nothing is left of the attempt, and an older file is unchanged."""


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to, which is renamed to `path` at the end.

    It has the ending of `path`, by which libraries choose the format.

    Raises:
        WriteError: If the disk is full or refuses.
    """
    path = Path(path)
    partial = path.with_name(f"{_PARTIAL}.{path.name}")
    with _told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Yields a folder below `folder` to write to; at the end its files are moved into `folder`.

    Raises:
        WriteError: If the disk is full or refuses.
    """
    folder = Path(folder)
    partial = folder / _PARTIAL
    with _told(folder):
        made = not folder.exists()
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in partial.iterdir():
                _sync(file)
            for file in sorted(partial.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):  # it is empty only after a failure
                    folder.rmdir()


def say(text: str, error: bool = False) -> None:
    """Prints text for the user as it is, without wrapping, markup or colours; with `error` to stderr."""
    from rich.console import Console  # not needed to write files: some GPU machines lack it

    Console(stderr=error).print(text, soft_wrap=True, highlight=False, markup=False)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in UTF-8 through `whole`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def check_writable(folder: str | Path) -> None:
    """Tests whether a folder can be written to, before work whose result goes there; nothing is left of the test.

    Raises:
        WriteError: If that fails.
    """
    probe = Path(folder) / ".probe"
    made = [parent for parent in probe.parents if not parent.exists()]  # the innermost first
    try:
        with whole(probe) as partial:
            partial.write_bytes(b"0")
        probe.unlink()
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def refusal(path: str | Path, error: OSError | str) -> str:
    """One line about a file that could not be written."""
    path = Path(path).absolute()
    reason = error if isinstance(error, str) else error.strerror or str(error)
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    return f"cannot write {path}: {reason} ({free:.1f} GB free there): make room, or write to another folder"


def causes(error: BaseException) -> list[BaseException]:
    """An error and the errors that caused it, each once: one that was raised again may be among its own causes."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is other for other in chain):
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if (cause := _of_disk(error)) is None:
            raise
        raise WriteError(refusal(path, cause)) from error


def _of_disk(error: BaseException) -> OSError | str | None:
    """The disk's error behind the error of a library; None if there is none."""
    errors = [cause for cause in causes(error) if isinstance(cause, OSError)]
    if errors:  # a missing file may be the consequence of a full disk
        return next((cause for cause in errors if cause.errno in _FULL), errors[0])
    text = str(error)  # torch and safetensors have writers of their own
    known = ("os error", "I/O error", "PytorchStreamWriter", "unexpected pos")
    return " ".join(text.split()) if any(part in text for part in known) else None


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
