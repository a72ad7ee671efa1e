"""`lookupvit check-data`: decodes every image and video ahead of time, and writes the list of those that are bad."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from datamodules.images.folder import EXTENSIONS as IMAGES
from datamodules.images.folder import decode_rgb
from datamodules.loading.unreadable import READ_ERRORS
from datamodules.video.decode import VideoReader, check_video
from datamodules.video.listing import EXTENSIONS as VIDEOS
from datamodules.video.listing import list_files
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.writing import write_text

_KINDS = {"images": IMAGES, "videos": VIDEOS, "all": (*IMAGES, *VIDEOS)}
_SHOWN = 10  # bad files on the screen; the list has all

_EPILOG = """\
examples:
  lookupvit check-data /data/kinetics400 --output bad_kinetics.txt --workers 8
  lookupvit fit --config configs/video/kinetics400_base_joint.yaml --data.exclude bad_kinetics.txt

The exit code is 0 if every file is good, 1 if some are bad, 2 if the arguments are wrong.
"""


def check_data(argv: list[str]) -> int:
    """Decodes the files that the arguments name, with a progress bar.

    Returns:
        The exit code: 0 if every file is good, 1 if some are bad.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    args = _parser().parse_args(argv)
    files = sorted({os.path.abspath(file) for path in args.paths for file in _files(path, args.kind)})
    if not files:
        raise ValueError(
            f"no {'images or videos' if args.kind == 'all' else args.kind} in {', '.join(args.paths)}: expected names "
            f"with {' '.join(_KINDS[args.kind])}"
        )
    output = Path(args.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(output.parent)!r} for --output {args.output}: make it first")
    bad = find_bad_files(files, args.workers, args.quick)
    write_bad_files(output, bad)
    for path, reason in bad[:_SHOWN]:
        print(f"bad: {path}: {reason}")
    if len(bad) > _SHOWN:
        print(f"and {len(bad) - _SHOWN} more")
    print(f"{len(files)} files, {len(bad)} bad ({len(bad) / len(files):.2%}); wrote {output}")
    return int(bool(bad))


def find_bad_files(files: list[str], workers: int, quick: bool = False) -> list[tuple[str, str]]:
    """Those of some images and videos that cannot be decoded, sorted, each with the reason; shows a progress bar.

    Args:
        files: Paths.
        workers: Processes; 0 checks in this one.
        quick: As for `check_file`.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers} must not be negative: 0 checks in this process")
    return sorted(_bad_files(files, workers, quick, Console(stderr=True)))


def write_bad_files(path: Path, bad: list[tuple[str, str]]) -> None:
    """The list that `--data.exclude` takes: a file, a tab, the reason."""
    write_text(path, "".join(f"{file}\t{reason}\n" for file, reason in bad))


def check_file(path: str, quick: bool = False) -> str:
    """What is wrong with an image or a video, as its ending says; empty if nothing is.

    Args:
        path: The file.
        quick: Read every packet of a video, but decode only its first and last frame.
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

    def __getitem__(self, place: int) -> tuple[str, str]:
        return self.files[place], check_file(self.files[place], self.quick)


def _bad_files(files: list[str], workers: int, quick: bool, console: Console) -> Iterator[tuple[str, str]]:
    columns = [TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]} bad")]
    count = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(files), bad=0)
        for path, reason in DataLoader(_Checks(files, quick), batch_size=None, num_workers=workers):
            count += bool(reason)
            progress.update(task, advance=1, bad=count)
            if reason:
                yield path, reason


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
        description="Decode every image and video, and write the list of the bad: a file, a tab, the reason.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders, files, or .txt lists of files")
    parser.add_argument("--kind", choices=tuple(_KINDS), default="all", help="what to look for in folders")
    parser.add_argument("--output", default="bad_files.txt", help="the list, for --data.exclude (bad_files.txt)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 checks in this one")
    parser.add_argument(
        "--quick", action="store_true", help="read all packets of videos, but decode only their first and last frame"
    )
    return parser
