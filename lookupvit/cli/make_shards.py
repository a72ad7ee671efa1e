"""`lookupvit make-shards`: WebDataset shards, in timm's layout, of a tree of class folders."""

import argparse
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from webdataset import TarWriter

from datamodules.images.folder import ImageFolder
from datamodules.loading.retry import with_retries
from datamodules.loading.unreadable import read_bad_files
from datamodules.shards.shards import INFO
from lookupvit.cli.check_data import find_bad_files, write_bad_files
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.writing import whole, write_text

_EPILOG = """\
examples:
  lookupvit make-shards /data/imagenet /data/imagenet_shards --split train
  lookupvit make-shards /data/imagenet /data/imagenet_shards --split val
  lookupvit fit --config configs/classification/imagenet1k_base.yaml --config configs/base/imagenet_shards.yaml
"""


def make_shards(argv: list[str]) -> None:
    """Writes the shards of one split, then `_info.json`, which makes them one; with a progress bar.

    Raises:
        ValueError, FileNotFoundError: For arguments or data that do not fit, and for a disk that takes no more.
    """
    args = _parser().parse_args(argv)
    if args.max_count < 1 or args.max_size <= 0:
        raise ValueError(f"--max_count {args.max_count} and --max_size {args.max_size:g} must be positive")
    root, output = Path(args.root).expanduser(), Path(args.output).expanduser()
    name = args.name or args.split
    info = _read(output)
    if name in info["splits"] and not args.overwrite:
        raise ValueError(f"{str(output / INFO)!r} has a split {name!r} already: choose another --name, or --overwrite")
    exclude = read_bad_files(args.exclude, root) if args.exclude else ()
    images = ImageFolder(root / args.split, exclude=exclude)
    if info.setdefault("classes", images.classes) != images.classes:
        raise ValueError(
            f"the class folders of {str(root / args.split)!r} are not those in {str(output / INFO)!r}: give every "
            "split the same, or write to another folder"
        )
    samples = list(images.samples)
    if not args.unchecked:
        _check([path for path, _ in samples], output / f"{name}_bad_files.txt", args.workers)
    random.Random(args.seed).shuffle(samples)  # a shard is to hold every class
    try:
        output.mkdir(parents=True, exist_ok=True)
        shards = _write_all(samples, output, f"{name}-{{:05d}}.tar", args.max_count, args.max_size)
        lengths = list(shards.values())
        info["splits"][name] = {"name": name, "num_samples": sum(lengths)}
        info["splits"][name] |= {"filenames": list(shards), "shard_lengths": lengths}
        write_text(output / INFO, json.dumps(info, indent=1))
    except OSError as error:
        raise ValueError(f"cannot write shards to {str(output)!r}: {error}; no half-written one was left") from error
    size = sum((output / shard).stat().st_size for shard in shards)
    print(
        f"wrote {len(shards)} shards with {len(samples)} images of {len(images.classes)} classes "
        f"({size / 1e6:,.1f} MB) and {output / INFO}: split {name!r}"
    )


def _check(paths: list[str], output: Path, workers: int) -> None:
    """Decodes every image before anything is written: in a shard a bad one is hard to find, and harder to mend."""
    if bad := find_bad_files(paths, workers):
        write_bad_files(output, bad)
        raise ValueError(
            f"{len(bad)} of {len(paths)} images cannot be decoded, {bad[0][0]} for one ({bad[0][1]}): repair them, or "
            f"leave out what {output} lists with --exclude {output}"
        )


def _read(output: Path) -> dict:
    """`_info.json` of earlier splits."""
    try:
        info = json.loads((output / INFO).read_text())
    except FileNotFoundError:
        return {"splits": {}}
    except ValueError as error:
        raise ValueError(f"{str(output / INFO)!r} is no JSON ({error}): remove it") from None
    if not isinstance(info, dict) or not isinstance(info.get("splits"), dict):
        raise ValueError(f"{str(output / INFO)!r} has no mapping 'splits': remove it, or write to another folder")
    return info


def _write_all(samples: list[tuple[str, int]], output: Path, pattern: str, count: int, size: float) -> dict[str, int]:
    """All shards under their final names; each name with its number of samples."""
    written: dict[str, int] = {}
    columns = [TextColumn("writing shards"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[shards]} done"), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("writing", total=len(samples), shards=0)
        for shard in _shards(samples, count, size):
            path = output / pattern.format(len(written))
            # mtime: the same bytes for the same images
            with whole(path) as partial, partial.open("wb") as file, TarWriter(file, mtime=0) as tar:
                for number, image, label in shard:
                    tar.write(_sample(number, image, label))
                    progress.update(task, advance=1)
                    written[path.name] = written.get(path.name, 0) + 1
            progress.update(task, shards=len(written))
    return written


def _shards(samples: list[tuple[str, int]], count: int, size: float) -> Iterator[list[tuple[int, str, int]]]:
    """The samples of each shard: as many as fit into `size` bytes, and `count` at most."""
    shard, total = [], 0
    for number, (path, label) in enumerate(samples):
        grown = os.path.getsize(path) + 3 * 512  # three headers or so
        if shard and (len(shard) == count or total + grown > size):
            yield shard
            shard, total = [], 0
        shard.append((number, path, label))
        total += grown
    yield shard


def _sample(number: int, path: str, label: int) -> dict[str, str | bytes]:
    kind = Path(path).suffix.lower().lstrip(".").replace("jpeg", "jpg")
    return {"__key__": f"{number:08d}", kind: with_retries(Path(path).read_bytes), "cls": str(label).encode()}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit make-shards",
        description="Write WebDataset shards (jpg, cls, _info.json) of ROOT/SPLIT/CLASS/*.jpg into OUT, shuffled.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="ROOT", help="the folder that holds the splits")
    parser.add_argument("output", metavar="OUT", help="folder of the shards")
    parser.add_argument("--split", default="train", help="folder below ROOT (train)")
    parser.add_argument("--name", help="name of the split in _info.json (that of its folder)")
    parser.add_argument("--max_count", type=int, default=10000, help="images of a shard at most (10000)")
    parser.add_argument("--max_size", type=float, default=1e9, help="bytes of a shard at most (1e9)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the images (0)")
    parser.add_argument(
        "--exclude", metavar="FILE", help="a list of images to leave out, of check-data or this command"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that decode every image first (0: this one)")
    parser.add_argument("--unchecked", action="store_true", help="write the images as they are, without decoding them")
    parser.add_argument("--overwrite", action="store_true", help="write a split again")
    return parser
