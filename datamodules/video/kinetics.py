"""Kinetics-400, -600 and -700 in the layouts that they have on disk.

The class order is that of the names with spaces, sorted: folders and lists write `air_drumming` for `air drumming`,
and a sort with underscores would differ.
"""

import csv
import os
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths

from datamodules.loading.files import what_is_there
from datamodules.video.datamodule import VideoDataModule
from datamodules.video.listing import EXTENSIONS, VideoList, by_stem, first_there, list_files

LAYOUTS = ("auto", "csv", "folders", "list")
# Other names of a split.
_ALIASES = {"val": ("val", "validate", "validation"), "validate": ("validate", "val", "validation")}


def class_name(label: str) -> str:
    """A label as Kinetics spells it: spaces, no quotes."""
    return " ".join(label.strip().strip("\"'").replace("_", " ").split())


def clip_stem(row: dict[str, str]) -> str:
    """File name, without its ending, of an annotation: `{youtube_id}_{start:06d}_{end:06d}`."""
    return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"


@cache
def _annotation_rows(file: Path) -> list[dict[str, str]]:
    """Rows of a Kinetics csv; empty for any other kind of file."""
    with file.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if row.get("youtube_id")]


class KineticsDataModule(VideoDataModule):
    """Kinetics: csv annotations with flat folders, class folders, or lists of paths and labels.

    - `csv`: `train.csv`, `val.csv` (or `validate.csv`, `kinetics400_train.csv`, or one csv with a column
      `split`) with `label,youtube_id,time_start,time_end,split`, in `root` or `root/annotations`; the videos
      are anywhere below `root/train` and `root/val`, named `{youtube_id}_{start:06d}_{end:06d}` or by the id.
    - `folders`: `root/train/CLASS/*.mp4`, class names with spaces or underscores.
    - `list`: `train.txt`, `val.txt` (`*train*.txt`, or `.csv` without a header) with lines `path label`;
      paths relative to `root` or to the split's folder, the label a number or a name with underscores. Names of
      numbered classes come from `classes.txt` (one per line) or from the folders in the paths.

    Args:
        root: The folder of the data set.
        layout: One of these, or `auto`: the first that fits.
        annotations: Folder with the csv files or lists, where it is not `root`.
        kwargs: As for `VideoDataModule`.
    """

    def __init__(self, root: str, layout: str = "auto", annotations: str | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        if layout not in LAYOUTS:
            raise ValueError(f"unknown data.layout {layout!r}: valid: {', '.join(LAYOUTS)}")
        self._asked, self._annotations = layout, Path(annotations).expanduser() if annotations else self.root

    @cached_property
    def layout(self) -> str:
        """`csv`, `folders` or `list`: what lies in `root`."""
        if self._asked != "auto":
            return self._asked
        if self._csv(self.train_split) or self._csv(self.val_split):
            return "csv"
        if self._list(self.train_split) or self._list(self.val_split):
            return "list"
        if any(self._class_folders(split) for split in (self.train_split, self.val_split)):
            return "folders"
        raise FileNotFoundError(
            f"no Kinetics in {str(self.root)!r}: {what_is_there(self.root)}; expected train.csv beside train/*.mp4, "
            "train/CLASS/*.mp4, or train.txt with lines 'path label' (docs/DATA.md shows the layouts)"
        )

    @cached_property
    def classes(self) -> list[str]:
        """Names with spaces, sorted; of numbered labels, in the order of the numbers."""
        split = next(split for split in (self.train_split, self.val_split) if self._has(split))
        if self.layout == "csv":
            return sorted({class_name(row["label"]) for row in self._rows(split)})
        if self.layout == "folders":
            return sorted(class_name(name) for name in self._class_folders(split))
        pairs = self._pairs(split)
        if any(isinstance(label, str) for _, label in pairs):
            return sorted({class_name(str(label)) for _, label in pairs})
        return self._names_of_numbers(pairs)

    def list_split(self, split: str) -> VideoList:
        """The videos of one split (called by `VideoDataModule`)."""
        if not self._has(split):
            raise FileNotFoundError(
                f"no split {split!r} of layout {self.layout!r} in {str(self.root)!r}: {what_is_there(self.root)}; name "
                "one that is there with data.train_split, data.val_split or data.test_split"
            )
        if self.layout == "csv":
            return self._from_csv(split)
        if self.layout == "folders":
            return self._from_folders(split)
        return self._from_list(split)

    def _has(self, split: str) -> bool:
        return bool({"csv": self._csv, "folders": self._class_folders, "list": self._list}[self.layout](split))

    def _index_of(self, label: str, where: Any) -> int:
        if label not in self._order:
            raise ValueError(
                f"the class {label!r} of {str(where)!r} is none of the {len(self.classes)} classes of the training "
                f"videos ({', '.join(self.classes[:3])}, ...); both must come from the same version of Kinetics"
            )
        return self._order[label]

    @cached_property
    def _order(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.classes)}

    def _folder(self, split: str) -> Path:
        names = _ALIASES.get(split, (split,))
        return next((self.root / name for name in names if (self.root / name).is_dir()), self.root / split)

    # -- csv ---------------------------------------------------------------------------------------------------------

    def _csv(self, split: str) -> Path | None:
        names = _ALIASES.get(split, (split,))
        file = first_there(self._annotations, [f"{name}.csv" for name in names] + [f"*{name}.csv" for name in names])
        if file is not None:
            return file if _annotation_rows(file) else None
        # one file of all splits
        file = first_there(self._annotations, ["*.csv"])
        return file if file and any(row.get("split") in names for row in _annotation_rows(file)) else None

    def _rows(self, split: str) -> list[dict[str, str]]:
        rows = _annotation_rows(self._csv(split))
        return [row for row in rows if row.get("split") in _ALIASES.get(split, (split,))] or rows

    def _from_csv(self, split: str) -> VideoList:
        folder = self._folder(split)
        files = by_stem(folder)
        videos = VideoList([], [])
        for row in self._rows(split):
            stem = clip_stem(row)
            path = files.get(stem) or files.get(row["youtube_id"])
            if path is None:
                videos.missing.append(str(folder / f"{stem}.mp4"))
                continue
            label = class_name(row.get("label") or "")  # test annotations may come without
            videos.paths.append(path)
            videos.targets.append(self._index_of(label, self._csv(split)) if label else None)
        return videos

    # -- class folders -----------------------------------------------------------------------------------------------

    def _class_folders(self, split: str) -> list[str]:
        folder = self._folder(split)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))

    def _from_folders(self, split: str) -> VideoList:
        folder, videos = self._folder(split), VideoList([], [])
        for name in sorted(self._class_folders(split), key=class_name):
            files = sorted(file for file in list_files(folder / name) if file.lower().endswith(EXTENSIONS))
            videos.paths += files
            videos.targets += [self._index_of(class_name(name), folder)] * len(files)
        return videos

    # -- lists -------------------------------------------------------------------------------------------------------

    def _list(self, split: str) -> Path | None:
        names = _ALIASES.get(split, (split,))
        exact = [f"{name}{ending}" for name in names for ending in (".txt", ".list", ".csv")]
        return first_there(self._annotations, exact + [f"*{name}*{end}" for name in names for end in (".txt", ".list")])

    def _pairs(self, split: str) -> list[tuple[str, int | str | None]]:
        file = self._list(split)
        try:
            listed = LabeledVideoPaths.from_csv(str(file))
        except ValueError:  # labels are names: PyTorchVideo knows numbers only
            lines = [line.rsplit(None, 1) for line in file.read_text().splitlines() if line.strip()]
            short = next((parts[0] for parts in lines if len(parts) < 2), None)
            if short is not None:
                raise ValueError(f"{str(file)!r}: line {short!r} is not 'path label'") from None
            return [(path.rstrip(","), label) for path, label in lines]
        except AssertionError:
            raise ValueError(f"{str(file)!r} is empty: expected lines 'path label'") from None
        pairs = [listed[place] for place in range(len(listed))]
        return [(path.rstrip(","), None if item["label"] < 0 else item["label"]) for path, item in pairs]

    def _names_of_numbers(self, pairs: Iterable[tuple[str, int | None]]) -> list[str]:
        parents: dict[int, set[str]] = {}
        for path, label in pairs:
            if label is not None:
                parents.setdefault(label, set()).add(class_name(Path(path).parent.name))
        count = max(parents) + 1
        if file := first_there(self._annotations, ["classes.txt", "labels.txt", "*classes*.txt"]):
            names = [class_name(line) for line in file.read_text().splitlines() if line.strip()]
            if len(names) < count:
                raise ValueError(f"{str(file)!r} names {len(names)} classes, but the lists use label {count - 1}")
            return names
        one_each = all(len(names) == 1 for names in parents.values())
        if one_each and len(parents) == count == len({name for names in parents.values() for name in names}):
            return [next(iter(parents[label])) for label in range(count)]
        return [f"class {label}" for label in range(count)]

    def _from_list(self, split: str) -> VideoList:
        videos, folders = VideoList([], []), (self.root, self._folder(split), self._list(split).parent)
        for name, label in self._pairs(split):
            # an absolute path stays itself; a listed name is looked for in each folder
            path = next((str(folder / name) for folder in folders if (folder / name).is_file()), None)
            if path is None:
                videos.missing.append(str(self.root / name))
                continue
            if isinstance(label, int) and label >= len(self.classes):
                raise ValueError(
                    f"label {label} of {path!r} is beyond the {len(self.classes)} classes of the training list"
                )
            videos.paths.append(path)
            videos.targets.append(self._index_of(class_name(label), path) if isinstance(label, str) else label)
        return videos
