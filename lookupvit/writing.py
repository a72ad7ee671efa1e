"""Files that are whole or not there, whatever happens while they are written: a full disk, a signal, a bug."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """A file or folder that could not be written; nothing is left of the attempt, and an older one is as it was."""


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A name in the folder of `path` to write to, a file or a folder; at the end of the block it is renamed to `path`.

    The name has the ending of `path`, because libraries choose a format by it. A folder that is there already gets the
    new files in place of its own of the same names.

    Raises:
        WriteError: If the disk is full or refuses; one line.
    """
    path = Path(path)
    partial = path.with_name(f".partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        if partial.is_dir():
            path.mkdir(exist_ok=True)
            for file in sorted(partial.iterdir()):
                _sync(file)
                os.replace(file, path / file.name)
        else:
            _sync(partial)
            os.replace(partial, path)
    except Exception as error:
        if (cause := _disk_error(error)) is None:
            raise
        raise WriteError(refusal(path, cause)) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file as `whole` does; its lines end as they do in `text`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def refusal(path: str | Path, error: OSError | str) -> str:
    """One line for a file that the disk does not take."""
    path = Path(path).absolute()
    reason = error if isinstance(error, str) else error.strerror or str(error)
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free / 1e9
    return f"cannot write {path}: {reason} ({free:.1f} GB free there): make room, or write to another folder"


def _disk_error(error: BaseException) -> OSError | str | None:
    """What the disk said, out of the error that a library made of it; None if it said nothing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = str(error)  # torch and safetensors have writers of their own
    if "os error" in text or "I/O error" in text or "PytorchStreamWriter" in text or "unexpected pos" in text:
        return " ".join(text.split())
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
