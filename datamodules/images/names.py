"""Class folders: readable names for them, and whether two splits have the same."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path


@cache
def _imagenet() -> tuple[list[str], dict[str, str]]:
    from timm.data import ImageNetInfo  # only here: importing timm takes a second

    everything = ImageNetInfo("imagenet-22k")
    return ImageNetInfo("imagenet-1k").label_names(), everything.label_descriptions(as_dict=True)


def imagenet_wnids() -> list[str]:
    """The 1000 wnids of ImageNet-1k, sorted: the class order."""
    return sorted(_imagenet()[0])


def readable_names(folders: Sequence[str]) -> list[str]:
    """Class names a person can read, in the order of the folders.

    A wnid such as `n01440764` becomes its first WordNet word (`tench`); where two folders share that word the wnid
    follows it. In any other name underscores become spaces.
    """
    if not any(_is_wnid(folder) for folder in folders):
        return [folder.replace("_", " ") for folder in folders]
    descriptions = _imagenet()[1]
    names = [descriptions.get(folder, folder.replace("_", " ")).split(",")[0] for folder in folders]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]


def mapped_names(folders: Sequence[str], file: str) -> list[str]:
    """Class names as a file gives them, in the order of the folders; readable ones of those that it leaves out.

    Args:
        folders: Class folders.
        file: JSON, `{"FOLDER": "CLASS NAME", ...}`.

    Raises:
        FileNotFoundError, ValueError: One line, if the file is not there, no such mapping, or names what is not there.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"data.class_map {file} does not exist: give a JSON file of FOLDER: CLASS NAME")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data.class_map {file} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'data.class_map {file} is no mapping such as {{"FOLDER": "CLASS NAME"}}')
    if unknown := sorted(set(names) - set(folders)):
        raise ValueError(
            f"data.class_map {file} names the folder {unknown[0]!r}, which is not there: there are "
            f"{', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''}"
        )
    result = [names.get(folder, own) for folder, own in zip(folders, readable_names(folders), strict=True)]
    if twice := [name for name, count in Counter(result).items() if count > 1]:
        raise ValueError(f"data.class_map {file} calls two folders {twice[0]!r}: give each its own name")
    return result


class NumberedClasses:
    """The classes of a DataModule and their number; for multiple inheritance.

    Attributes:
        classes: Names of the classes on disk, in the order of their indices.
    """

    classes: list[str]
    _num_classes: int | None  # as given; None: count

    @property
    def num_classes(self) -> int:
        """The number given, else the number of classes on disk."""
        return len(self.classes) if self._num_classes is None else self._num_classes

    @property
    def class_names(self) -> list[str]:
        """Readable class names, in the order of the indices."""
        return readable_names(self.classes)

    def check_num_classes(self, root: object, what: str = "classes") -> None:
        """Compares the number given with the data.

        Args:
            root: Where the data lie, for the error.
            what: What a class is on disk, for the error.

        Raises:
            ValueError: One line that names both numbers.
        """
        count = len(self.classes)
        if self._num_classes not in (None, count):
            raise ValueError(
                f"data.num_classes is {self._num_classes}, but {str(root)!r} has {count} {what} "
                f"({', '.join(self.classes[:3])}, ...); set data.num_classes={count} or check data.root"
            )


def _is_wnid(folder: str) -> bool:
    return len(folder) == 9 and folder[0] == "n" and folder[1:].isdigit()


def check_same_classes(found: Sequence[str], expected: Sequence[str], where: Path, reference: Path) -> None:
    """Raise where two splits do not have the same class folders.

    Args:
        found: Sorted folder names of `where`.
        expected: Sorted folder names of `reference`.
        where: The folder looked at.
        reference: The folder that sets the classes.

    Raises:
        ValueError: One line that names what is missing and what is too much.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [
        f"{len(names)} {text} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, text in ((missing, "missing"), (extra, "too many"))
        if names
    ]
    if parts:
        raise ValueError(
            f"the class folders of {str(where)!r} are not those of {str(reference)!r}: {' and '.join(parts)}; "
            f"give every split the same {len(expected)} class folders"
        )
