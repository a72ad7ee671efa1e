"""Files on disk: all below a folder, those that a path or a glob names, and what to say of a folder in an error."""

import glob
import os
from pathlib import Path


def list_files(folder: str | os.PathLike) -> list[str]:
    """All files below a folder, at any depth; unsorted, and without a call for each file's status.

    Files and folders whose name starts with a dot are skipped: a system or a program left them there.
    """
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return files


def find_files(path: str | os.PathLike, extensions: tuple[str, ...], kind: str, example: str) -> list[str]:
    """The files that a path names: the file itself, all below a folder, or all that match a glob; sorted.

    Args:
        path: A file, a folder (searched at any depth) or a glob (`**` crosses folders).
        extensions: Endings of the files wanted, in lower case.
        kind: What such a file is called in an error, such as `image`.
        example: A glob for the text of an error.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The folder or the glob holds no such file.
    """
    text = os.path.expanduser(os.fspath(path))
    if os.path.isfile(text):
        return [text]
    if os.path.isdir(text):
        present = list_files(text)
    elif glob.has_magic(text):
        present = [file for file in glob.glob(text, recursive=True) if os.path.isfile(file)]
    else:
        article = "an" if kind[0] in "aeiou" else "a"
        raise FileNotFoundError(
            f"no such {kind} or folder: {text!r}; give {article} {kind}, a folder or a glob such as {example!r}"
        )
    wanted = sorted(file for file in present if file.lower().endswith(extensions))
    if not wanted:
        raise ValueError(
            f"no {kind}s in {text!r}: {len(present)} other files; expected names with {' '.join(extensions)}"
        )
    return wanted


def what_is_there(directory: Path) -> str:
    """One phrase for an error: what a folder holds, or that the folder is missing too."""
    if not directory.is_dir():
        return f"{str(directory)!r} does not exist either"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(directory))
    if not names:
        return f"{str(directory)!r} is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{str(directory)!r} holds {', '.join(names[:5])}{more}"
