"""Files that cannot be read: `predict` keeps a row for each of them, and training leaves out those of a list."""

import os
import warnings
from pathlib import Path
from typing import Any


class Unreadable(str):
    """The name of a file that cannot be read, among the names of a batch; its picture in the batch is a blank one.

    It is a string, so that batches keep their form. `getattr(name, "error", None)` tells it from other names.

    Attributes:
        error: What is wrong with the file, in one line.
    """

    error: str

    def __new__(cls, name: str, error: str) -> "Unreadable":  # noqa: D102
        made = super().__new__(cls, name)
        made.error = error
        return made

    def __getnewargs__(self) -> tuple[str, str]:
        """For pickling, on the way from a loader process to the main one."""
        return str(self), self.error


# What reading or resizing a damaged file may raise.
READ_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)


def unreadable(item: Any, error: BaseException) -> Any:
    """The item of a sample, a name or a tuple that ends in one, with that name marked."""
    if isinstance(item, tuple):
        return (*item[:-1], unreadable(item[-1], error))
    text = str(error).split("; ")[0]  # without the remedy, which is for training
    return Unreadable(str(item), " ".join(text.split()) or type(error).__name__)


def read_bad_files(path: str | os.PathLike, root: str | os.PathLike = ".") -> set[str]:
    """The list that `lookupvit check-data` writes: on each line a file, then a tab and the reason.

    Args:
        path: The list; lines that start with `#` are comments.
        root: What relative paths in it are relative to.

    Returns:
        absolute paths.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: It is no text.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no list of bad files {str(path)!r} (data.exclude); lookupvit check-data writes one, or set it to null"
        )
    try:
        lines = [line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no list of files, a line each (data.exclude): {error}") from None
    listed = {os.path.abspath(os.path.join(root, line)) for line in lines if line and not line.startswith("#")}
    if listed and not any(map(os.path.exists, listed)):
        warnings.warn(
            f"none of the {len(listed)} files that {str(path)!r} lists (data.exclude) is there, {min(listed)!r} for "
            "one: paths in it are absolute, or relative to data.root",
            stacklevel=2,
        )
    return listed
