"""Reads WebDataset shards as a stream, in the order of a `Plan`. A resumed epoch opens only the shards it needs."""

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.data import Dataset, get_worker_info
from webdataset import gopen
from webdataset.tariterators import group_by_keys

from datamodules.images.decode import CorruptImageError, decode_bytes
from datamodules.loading.resumable import Key, derived_seed
from datamodules.loading.retry import TRANSIENT, with_retries
from datamodules.loading.untrusted import MAX_JSON, MAX_MEMBER, MAX_SHARD, inside, is_address, parse_json
from datamodules.loading.workers import OneLineError, Watched
from datamodules.shards.plan import Plan

INFO = "_info.json"
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
_ATTEMPTS = 5


class CorruptShardError(OneLineError):
    """A shard that cannot be read, or that is not what `_info.json` says; one line that names it."""


@dataclass(frozen=True)
class Shards:
    """The shards of one split: their addresses, and how many samples each has."""

    urls: tuple[str, ...]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.lengths)


def shard_url(root: str, name: str) -> str:
    """The address of a file: `root` with the name in the place of `{}`, or else the name below `root`."""
    return root.replace("{}", name) if "{}" in root else f"{root.rstrip('/')}/{name}"


def open_url(url: str) -> BinaryIO:
    """A stream of bytes from a path, from `http(s)://` (by curl), from `pipe:COMMAND`, or from what fsspec knows."""
    if not is_address(url):
        return open(url, "rb")
    if url.startswith(("pipe:", "http://", "https://")):
        return gopen(url)
    import fsspec

    return fsspec.open(url, "rb").open()


def read_info(root: str) -> dict[str, Any]:
    """The content of `_info.json`, as timm writes it: `splits`, each with `filenames` and `shard_lengths`.

    Raises:
        FileNotFoundError: The folder or the file does not exist.
        ValueError: The file is no JSON, or has no `splits`.
    """
    url = shard_url(root, INFO)
    if not is_address(root) and not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root!r} of shards: set data.root, or write one with lookupvit make-shards")
    try:
        with closing(open_url(url)) as file:
            info = parse_json(file.read(MAX_JSON + 1), "it")
    except (OSError, ImportError) as error:
        raise FileNotFoundError(
            f"cannot read {url!r} ({_reason(error)}): it says how many samples each shard has; "
            "lookupvit make-shards writes it"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url!r} is no JSON ({error}): write the shards again with lookupvit make-shards") from None
    if not isinstance(info, dict) or not isinstance(info.get("splits"), dict):
        raise ValueError(f"{url!r} has no mapping 'splits': write it with lookupvit make-shards, or as timm does")
    return info


def read_split(root: str, info: dict[str, Any], split: str) -> Shards:
    """The shards of one split.

    Raises:
        ValueError: There is no such split, or its entry has no matching `filenames` and `shard_lengths`.
    """
    where = f"{shard_url(root, INFO)!r}"
    if split not in info["splits"]:
        raise ValueError(f"{where} has no split {split!r}: it has {', '.join(info['splits']) or 'none'}")
    entry = info["splits"][split]
    try:
        names, lengths = [str(name) for name in entry["filenames"]], [int(length) for length in entry["shard_lengths"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}, split {split!r}: filenames and shard_lengths are needed ({error!r})") from None
    names = [inside(name, f"{where}, split {split!r},", is_address(root)) for name in names]
    if lengths and max(lengths) > MAX_SHARD:
        raise ValueError(
            f"{where}, split {split!r}: a shard of {max(lengths):,} samples; at most {MAX_SHARD:,} fit here"
        )
    if len(names) != len(lengths) or not names or min(lengths) < 1:
        raise ValueError(
            f"{where}, split {split!r}: {len(names)} filenames and {len(lengths)} shard_lengths, each of at least 1, "
            "must be as many"
        )
    return Shards(tuple(shard_url(root, name) for name in names), tuple(lengths))


class StreamedImages(Watched, Dataset):
    """The batches of one rank, read from shards: for `Key(epoch, batch)` a list of `(Key(epoch, number), sample)`.

    A sample is `(image (3, H, W) uint8, class)`, or None for an image that is left out. Batches that follow one
    another, as a `StreamSampler` asks each worker for them, come from one open stream. For any other batch the stream
    begins anew, and opens only the shards that are still needed.

    Args:
        shards: The shards of the split.
        plan: Which samples each batch has.
        rank: Rank of this process.
        transform: Transform of each image, or None. Its random numbers follow from (seed, epoch, number of the sample).
        classes: Number of classes; every class index must be below it.
        skip_corrupt: Leave out images that cannot be decoded.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Plan,
        rank: int,
        transform: Callable[[torch.Tensor], torch.Tensor] | None,
        classes: int,
        skip_corrupt: bool = False,
    ) -> None:
        super().__init__()
        self.shards, self.plan, self.rank = shards, plan, rank
        self.transform, self.classes, self.skip_corrupt = transform, classes, skip_corrupt
        self.left_out = torch.zeros(1, dtype=torch.int64).share_memory_()  # images, counted by all workers
        self._offsets = [0, *accumulate(shards.lengths)]
        self._next: Key | None = None
        self._stream: Iterator[list[tuple[Key, Any]]] = iter(())

    def set_seed(self, seed: int) -> None:
        """Takes another seed, before the loader's processes exist."""
        self.plan = replace(self.plan, seed=seed)

    def __len__(self) -> int:
        return len(self.shards)

    def sample_name(self, number: int) -> str:
        """A sample's shard and its place in it."""
        shard = max(index for index in range(len(self.shards.lengths)) if self._offsets[index] <= number)
        return f"{self.shards.urls[shard]} (sample {number - self._offsets[shard]})"

    def __getitem__(self, key: Key) -> list[tuple[Key, Any]]:
        if not isinstance(key, Key):
            raise ValueError("streamed shards have no random access: overfit_batches and the like need an image folder")
        worker = get_worker_info()
        streams = 1 if worker is None else worker.num_workers
        if key != self._next:
            self._stream = self._batches(key, streams)
        self._next = Key(key.epoch, key.index + streams)
        return next(self._stream)

    def _batches(self, key: Key, streams: int) -> Iterator[list[tuple[Key, Any]]]:
        samples, sizes, shards = self.plan.stream(key.epoch, self.rank, key.index % streams, streams)
        done = key.index // streams
        samples, sizes = samples[sum(sizes[:done]) :], sizes[done:]
        found: dict[tuple[int, int], dict[str, Any]] = {}
        with closing(self._read(samples, shards)) as source:
            place = 0
            for size in sizes:
                batch = []
                for sample in samples[place : place + size]:
                    while sample not in found:
                        where, content = next(source)
                        found[where] = content
                    batch.append(self._decode(key.epoch, sample, found.pop(sample)))
                place += size
                yield batch

    def _read(
        self, samples: Sequence[tuple[int, int]], shards: Sequence[int]
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """The samples in the order in which they lie in the files, shard after shard."""
        wanted: dict[int, set[int]] = {}
        for shard, place in samples:
            wanted.setdefault(shard, set()).add(place)
        for shard in shards:
            if shard in wanted:
                self.now_reading(self._offsets[shard])
                for place, content in self._read_shard(shard, max(wanted[shard])):
                    if place in wanted[shard]:
                        yield (shard, place), content

    def _read_shard(self, shard: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Places and contents of a shard, up to `last`. After a transient error it goes on at the same place."""
        url, length = self.shards.urls[shard], self.shards.lengths[shard]
        place, attempts = 0, _ATTEMPTS
        while True:
            try:
                stream = with_retries(lambda: open_url(url))
                try:
                    for at, content in enumerate(_contents(stream, url)):
                        if at < place:
                            continue
                        if at >= length:
                            raise CorruptShardError(f"the shard {url!r} has more samples than {INFO} says: {length}")
                        yield at, content
                        place = at + 1
                        if at == last < length - 1:
                            return
                finally:
                    with suppress(OSError):  # a pipe that is closed before its end
                        stream.close()
                break
            except OSError as error:
                attempts -= 1
                if error.errno not in TRANSIENT or attempts == 0:
                    raise _unreadable(url, error) from error
            except CorruptShardError:
                raise
            except Exception as error:  # whatever tarfile, zlib and the like raise for a damaged archive
                raise _unreadable(url, error) from error
        if place < length:
            raise CorruptShardError(
                f"the shard {url!r} ends after {place} samples, {INFO} says {length}: it is cut short; write it again"
            )

    def _decode(self, epoch: int, sample: tuple[int, int], content: dict[str, Any]) -> tuple[Key, Any]:
        number = self._offsets[sample[0]] + sample[1]
        name = f"{content['__key__']} of the shard {self.shards.urls[sample[0]]!r}"
        kinds = [kind for kind in _IMAGES if kind in content]
        if not kinds or not content.get("cls", b"").strip().isdigit():
            parts = ", ".join(sorted(key for key in content if not key.startswith("__")))
            raise CorruptShardError(f"sample {name} has {parts}: it needs an image (jpg, png, ...) and a cls, a number")
        label = int(content["cls"])
        if label >= self.classes:
            raise CorruptShardError(
                f"sample {name} has class {label}, but there are {self.classes}: set data.num_classes"
            )
        key = Key(epoch, number)
        self.now_reading(number)
        torch.default_generator.manual_seed(derived_seed(self.plan.seed, 0, *key))
        try:
            image = decode_bytes(content[kinds[0]], name)
        except CorruptImageError:
            if not self.skip_corrupt:
                raise
            self.left_out += 1
            return key, None
        return key, (image if self.transform is None else self.transform(image), label)


def _contents(stream: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    return group_by_keys({**file, "__url__": url} for file in _files(stream, url))


def _files(stream: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    """As webdataset's `tar_file_iterator`, but a member that would unpack to more than `MAX_MEMBER` is an error."""
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
                continue
            if member.size > MAX_MEMBER or member.issparse():
                raise CorruptShardError(
                    f"the shard {url!r} has a file of {member.size:,} bytes, {member.name!r}: images are of "
                    f"{MAX_MEMBER:,} at most"
                )
            yield {"fname": member.name, "data": tar.extractfile(member).read()}
            tar.members = []  # else each member of the stream is remembered


def _unreadable(url: str, error: Exception) -> CorruptShardError:
    return CorruptShardError(
        f"cannot read the shard {url!r}: {_reason(error)}; write it again, or repair the connection"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error.args[0] if len(error.args) == 1 else error).split()) or type(error).__name__
