"""`lookupvit check-data`: decodes every image and video ahead of time, and writes the list of those that are bad.

Of data with masks or boxes it checks each image with its labels.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from datamodules.images.folder import EXTENSIONS as IMAGES
from datamodules.images.folder import decode_rgb
from datamodules.loading.unreadable import READ_ERRORS
from datamodules.video.decode import VideoReader, check_video
from datamodules.video.listing import EXTENSIONS as VIDEOS
from datamodules.video.listing import list_files
from lookupvit.cli.common.arguments import OneLineParser, split_data_options
from lookupvit.writing import write_text

_KINDS = {"images": IMAGES, "videos": VIDEOS, "all": (*IMAGES, *VIDEOS)}
_SHOWN = 10  # bad files on the screen; the list has all

_EPILOG = """\
examples:
  lookupvit check-data /data/kinetics400 --output bad_kinetics.txt --workers 8
  lookupvit fit --config configs/video/kinetics400_base_joint.yaml --data.exclude bad_kinetics.txt
  lookupvit check-data --data COCOInstancesDataModule --data.root /data/coco --workers 8

The exit code is 0 if every file is good, 1 if some are bad, 2 if the arguments are wrong.
"""


def check_data(argv: list[str]) -> int:
    """Decodes the files that the arguments name, with a progress bar.

    Args:
        argv: Arguments after `lookupvit check-data`.

    Returns:
        The exit code: 0 if every file is good, 1 if some are bad.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    own, passed = split_data_options(argv)
    args = _parser().parse_args(own)
    if bool(args.paths) == bool(passed):
        raise ValueError("check-data takes either folders and files, or --data CLASS --data.root FOLDER (see --help)")
    output = Path(args.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(output.parent)!r} for --output {args.output}: make it first")
    if passed:
        from lookupvit.cli.common.loaded import instantiate_data  # imports every task

        checks: Dataset = _checks_of(instantiate_data(passed))
    else:
        checks = _Checks(_listed(args), args.quick)
    bad = _find_bad(checks, args.workers)
    write_bad_files(output, bad)
    for path, reason in bad[:_SHOWN]:
        print(f"bad: {path}: {reason}")
    if len(bad) > _SHOWN:
        print(f"and {len(bad) - _SHOWN} more")
    count, total = len({path for path, _ in bad}), len(checks)
    print(f"{total} files, {count} bad ({count / total:.2%}); wrote {output}")
    return int(bool(bad))


def _listed(args: argparse.Namespace) -> list[str]:
    """The files that the arguments name."""
    files = sorted({os.path.abspath(file) for path in args.paths for file in _files(path, args.kind)})
    if not files:
        raise ValueError(
            f"no {'images or videos' if args.kind == 'all' else args.kind} in {', '.join(args.paths)}: expected names "
            f"with {' '.join(_KINDS[args.kind])}"
        )
    return files


def find_bad_files(files: list[str], workers: int, quick: bool = False) -> list[tuple[str, str]]:
    """Those of some images and videos that cannot be decoded, sorted, each with the reason; shows a progress bar.

    Args:
        files: Paths.
        workers: Processes; 0 checks in this one.
        quick: As for `check_file`.
    """
    return _find_bad(_Checks(files, quick), workers)


def _find_bad(checks: Dataset, workers: int) -> list[tuple[str, str]]:
    if workers < 0:
        raise ValueError(f"--workers {workers} must not be negative: 0 checks in this process")
    return sorted(_bad_files(checks, workers, Console(stderr=True)))


def write_bad_files(path: Path, bad: list[tuple[str, str]]) -> None:
    """The list that `--data.exclude` takes: a file, a tab, the reason."""
    write_text(path, "".join(f"{file}\t{reason}\n" for file, reason in bad))


def check_file(path: str, quick: bool = False) -> str:
    """What is wrong with an image or a video, as its ending says; empty if nothing is.

    Args:
        path: The file.
        quick: Of a video, read every packet, and decode the first and the last frame only.
    """
    try:
        if not path.lower().endswith(VIDEOS):
            decode_rgb(path)
        elif quick:
            with VideoReader(path) as video:
                video.frames([0, len(video) - 1])
        else:
            check_video(path)
    except READ_ERRORS as error:
        # only the reason: the list has the path before it, and the remedy is the list
        text = " ".join(str(error).split("; ")[0].split()) or type(error).__name__
        return text.partition("): ")[2] or text
    return ""


class _Checks(Dataset):
    """One check per file; a `DataLoader` spreads them over its workers."""

    def __init__(self, files: list[str], quick: bool) -> None:
        self.files, self.quick = files, quick

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> list[tuple[str, str]]:
        reason = check_file(self.files[place], self.quick)
        return [(self.files[place], reason)] if reason else []


class _DenseChecks(Dataset):
    """One check per image and its labels."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> list[tuple[str, str]]:
        return [(os.path.abspath(path), reason) for path, reason in self.images.check(place)]


def _checks_of(data: LightningDataModule) -> Dataset:
    """The checks of every split of a DataModule."""
    if not hasattr(data, "to_check"):
        raise ValueError(
            f"check-data --data is for data with masks or boxes, not {type(data).__name__}: name its folders and files"
        )
    return ConcatDataset([_DenseChecks(images) for images in data.to_check().values()])


def _bad_files(checks: Dataset, workers: int, console: Console) -> Iterator[tuple[str, str]]:
    columns = [TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]} bad")]
    count = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(checks), bad=0)
        for found in DataLoader(checks, batch_size=None, num_workers=workers, collate_fn=list):
            count += bool(found)
            progress.update(task, advance=1, bad=count)
            yield from found


def _files(path: str, kind: str) -> list[str]:
    """The images and videos that an argument names: a folder to its bottom, a file, or a list of files (`.txt`)."""
    text = os.path.expanduser(path)
    if os.path.isdir(text):
        found = list_files(text)
    elif not os.path.isfile(text):
        raise FileNotFoundError(f"no such file or folder: {path!r}")
    elif text.endswith(".txt"):
        lines = Path(text).read_text().splitlines()
        return [line.split("\t")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    else:
        return [text]
    return [file for file in found if file.lower().endswith(_KINDS[kind])]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit check-data",
        description="Decode every image and video, and write the list of the bad: a file, a tab, the reason. With "
        "--data, check every image of a DataModule with its masks or boxes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="folders, files, or .txt lists of files")
    parser.add_argument("--kind", choices=tuple(_KINDS), default="all", help="what to look for in folders")
    parser.add_argument("--output", default="bad_files.txt", help="the list, for --data.exclude (bad_files.txt)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 checks in this one")
    parser.add_argument(
        "--quick", action="store_true", help="of videos, all packets but only the first and the last frame"
    )
    return parser
