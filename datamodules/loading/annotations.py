"""Annotation files, and the images that they name."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.loading.files import what_is_there
from datamodules.loading.untrusted import parse_json


def read_json(file: Path) -> Any:
    """The content of an annotation file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no annotations {str(file)!r}: {what_is_there(file.parent)}; to do without validation data set "
            "data.val_split=train, or hold training images out with data.val_fraction=0.1"
        )
    try:
        return parse_json(file.read_bytes(), "it")
    except ValueError as error:  # also bytes that are no UTF-8
        raise ValueError(f"{str(file)!r} is not valid JSON: {error}; download the file again") from error


def check_files(paths: Iterable[str], file: Path) -> None:
    """Whether the images that an annotation file names are there.

    Raises:
        FileNotFoundError: If some are missing; it names one, and says how many.
    """
    paths = list(paths)
    listed: dict[str, set[str]] = {}  # listing each folder is faster than looking for each file
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} images of {str(file)!r} are missing, such as {missing[0]!r}: "
            f"{what_is_there(Path(missing[0]).parent)}; unpack the images there, or set data.root"
        )
