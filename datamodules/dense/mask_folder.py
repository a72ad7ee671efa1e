"""Any folder of images and masks."""

import os
from pathlib import Path
from typing import Any

from datamodules.dense.masks import MASK_EXTENSIONS
from datamodules.dense.segmentation import SegmentationDataModule
from datamodules.images.folder import EXTENSIONS
from datamodules.loading.files import list_files, what_is_there


def files_by_stem(folder: Path, extensions: tuple[str, ...], ending: str = "") -> dict[str, str]:
    """The files below a folder, by their path in it without the ending; sorted.

    Args:
        folder: Searched to the bottom.
        extensions: Of the files wanted, in lower case.
        ending: What the names end in besides, which is cut off, too.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no such file, or two of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r}: {what_is_there(folder.parent)}; docs/DATA.md shows the layouts, and data.root "
            "names the folder above"
        )
    found: dict[str, str] = {}
    for path in sorted(list_files(folder)):
        stem, extension = os.path.splitext(os.path.relpath(path, folder))
        if extension.lower() in extensions and stem.endswith(ending):
            stem = stem[: len(stem) - len(ending)]
            if stem in found:
                raise ValueError(f"{found[stem]!r} and {path!r} have one name: remove one of them")
            found[stem] = path
    if not found:
        raise ValueError(
            f"no files *{ending}{'|'.join(extensions)} in {str(folder)!r}: {what_is_there(folder)}; put them there"
        )
    return found


def read_class_names(path: Path) -> list[str]:
    """The lines of `classes.txt`.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is empty, no text, or has a name twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {str(path)!r}: {what_is_there(path.parent)}; write it, with the name of a class on each line, in the "
            "order of their numbers in the masks"
        )
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8: {error}") from None
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if not names or twice:
        what = f"has the class {twice!r} twice" if twice else "names no class"
        raise ValueError(f"{str(path)!r} {what}: give one line to each class")
    return names


class MaskFolderDataModule(SegmentationDataModule):
    """Images and masks of equal names: `images/SPLIT/*.jpg`, `masks/SPLIT/*.png`, and `classes.txt`.

    A mask has one number per pixel: class k is line k of `classes.txt`, the first line being 0, and 255 is ignored, as
    are the numbers of `unlabelled`. Without `test_split`, the test images are those of `images/test` where that
    is, else the validation images.

    Args:
        root: The folder of the data.
        num_classes: Checked against `classes.txt`; `None` = as many as that names.
        kwargs: As for `SegmentationDataModule`.
    """

    def __init__(self, root: str, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self._num_classes = num_classes

    @property
    def class_names(self) -> list[str]:
        """The lines of `classes.txt`."""
        return read_class_names(self.root / "classes.txt")

    def _check_classes(self) -> None:
        if self._num_classes not in (None, self.num_classes):
            raise ValueError(
                f"data.num_classes={self._num_classes}, but {str(self.root / 'classes.txt')!r} names "
                f"{self.num_classes}: set it to null to count them"
            )

    def _has(self, split: str) -> bool:
        return (self.root / "images" / split).is_dir()

    def _samples(self, split: str) -> list[tuple[str, str]]:
        images = files_by_stem(self.root / "images" / split, EXTENSIONS)
        masks = files_by_stem(self.root / "masks" / split, MASK_EXTENSIONS)
        if strange := sorted(masks.keys() - images.keys()):
            raise ValueError(
                f"{len(strange)} masks of the split {split!r} have no image, such as {masks[strange[0]]!r}: add an "
                f"image of the same name to {str(self.root / 'images' / split)!r}, or remove the mask"
            )
        expected = str(self.root / "masks" / split)
        return [(path, masks.get(stem, os.path.join(expected, stem + ".png"))) for stem, path in images.items()]
