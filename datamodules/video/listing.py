"""Lists of video files: those of a folder, and those of one split of a data set.

Letters: `K` classes, `n` videos.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.loading.files import find_files, list_files, what_is_there

EXTENSIONS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


@dataclass
class VideoList:
    """The videos of one split.

    Attributes:
        paths: n files.
        targets: n class indices; `None` for a video without a label.
        missing: Files that an annotation names but that do not exist.
    """

    paths: list[str]
    targets: list[int | None]
    missing: list[str] = field(default_factory=list)

    def without(self, excluded: set[str]) -> "VideoList":
        """The list without some files, given as absolute paths."""
        if not excluded:
            return self
        kept = [place for place, path in enumerate(self.paths) if os.path.abspath(path) not in excluded]
        return VideoList([self.paths[place] for place in kept], [self.targets[place] for place in kept], self.missing)

    def check(self, where: str, max_bad_share: float) -> "VideoList":
        """Returns the list, with a warning about missing files; `ValueError` if too many are missing, or all."""
        total = len(self.paths) + len(self.missing)
        if not self.paths or len(self.missing) > max_bad_share * total:
            first = f", {self.missing[0]!r} for one" if self.missing else ""
            raise ValueError(
                f"{len(self.missing)} of the {total} videos of {where} are missing{first}; check data.root, or allow "
                f"it with data.max_bad_share (now {max_bad_share:g})"
            )
        if self.missing:
            warnings.warn(
                f"{len(self.missing)} of the {total} videos of {where} are missing and left out: {self.missing[0]!r}"
                f"{', ...' if len(self.missing) > 1 else ''}",
                stacklevel=2,
            )
        return self


def find_videos(path: str | os.PathLike) -> list[str]:
    """The video files that a path names: itself, all below a folder, or all that match a glob; sorted.

    Args:
        path: A video, a folder (searched to the bottom) or a glob (`**` crosses folders).

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The folder or the glob holds no video.
    """
    return find_files(path, EXTENSIONS, "video", "a/*.mp4")


def by_stem(folder: str | os.PathLike) -> dict[str, str]:
    """Videos below a folder by their name without its ending.

    Raises:
        FileNotFoundError: The folder is missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: {what_is_there(Path(folder).parent)}; check data.root")
    files = (file for file in list_files(folder) if file.lower().endswith(EXTENSIONS))
    return {os.path.splitext(os.path.basename(file))[0]: file for file in files}


def first_there(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some names, which may be globs, that a folder or its annotation folders hold."""
    for name in names:
        for place in (folder, folder / "annotations", folder / "labels"):
            if found := sorted(place.glob(name)):
                return found[0]
    return None
