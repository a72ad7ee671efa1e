"""A map-style data set of labelled videos that goes on when it meets bad files.

Letters: `T` frames, `V` views = clips x crops, `C` = 3 channels, `H, W` pixels, `n` videos.
"""

import logging
import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.unreadable import READ_ERRORS, unreadable
from datamodules.loading.workers import OneLineError
from datamodules.video.decode import VideoReader, choose_decoder, open_video
from datamodules.video.index import CorruptVideoError, VideoIndex
from datamodules.video.sampling import FrameSampler

_log = logging.getLogger(__name__)
_NAMED = 20  # bad files in the text of an error


class TooManyBadVideosError(OneLineError):
    """More of the videos are bad than the user allows; one line with the list."""


class VideoDataset(Dataset):
    """Clips of labelled videos.

    A file that is missing or cannot be decoded gives way to another video: a random one in training, the next one in
    evaluation. It is named once, in the log, counted, and not tried again. In prediction every file keeps its place:
    views of one that cannot be read are blank, and its name is an `Unreadable`, which says why.

    Args:
        samples: Pairs of a file and its item: a class index, or anything a batch should carry along.
        sampler: Chooses the frames.
        transform: Transform of the frames `(T, 3, H, W)`: to one clip `(3, T, H, W)` in training, else to the views
            `(crops, 3, T, H, W)`.
        kind: `train`: samples are `(clip (3, T, H, W), item)`, at a random time; `val`: the same of the middle
            clip; `test`: `(views (V, 3, T, H, W), item, place)`; `predict`: `(views, item)`.
        clips: Number of evenly spaced clips of each video in `test` and `predict`.
        decoder: `auto`, `pyav` or `torchcodec`.
        threads: Threads of the decoder.
        retries: How many other videos to try in place of a bad one.
        max_bad_share: Part of the n videos that may be bad.
        cache: Keep the decoded frames of whole videos in memory (of small ones only).

    Raises:
        TooManyBadVideosError: More are bad than `max_bad_share`, or `retries` in a row.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, Any]],
        sampler: FrameSampler,
        transform: Callable[[Tensor], Tensor],
        kind: str = "train",
        clips: int = 1,
        decoder: str = "auto",
        threads: int = 1,
        retries: int = 10,
        max_bad_share: float = 0.1,
        cache: bool = False,
    ) -> None:
        self.samples = LabeledVideoPaths([(os.fspath(path), item) for path, item in samples])
        self.sampler, self.transform = sampler, transform
        self.kind, self.clips = kind, 1 if kind == "val" else clips
        self.decoder, self.threads = choose_decoder(decoder), threads
        self.retries, self.max_bad_share = retries, max_bad_share
        # Shared memory, so that the main process sees what the workers met. A place is read by one worker at a time.
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self._replaced = torch.zeros(len(self.samples), dtype=torch.int64).share_memory_()
        self._lock = multiprocessing.Lock()
        self._cache: dict[int, _CachedVideo] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def bad(self) -> list[str]:
        """Files that were found bad so far, by any worker."""
        return [self.samples[place][0] for place in self._bad.nonzero().flatten().tolist()]

    @property
    def replaced(self) -> int:
        """How often another video was given in place of a bad one so far."""
        return int(self._replaced.sum())

    def __getitem__(self, place: int) -> tuple[Any, ...]:
        if self.kind == "predict":
            return self._to_predict(place)
        tried = place
        for _ in range(self.retries + 1):
            state = torch.default_generator.get_state()
            sample = None if self._bad[tried] else self._try(tried)
            if sample is None:  # what stands in does not depend on how far a bad file could be read
                torch.default_generator.set_state(state)
            else:
                if tried != place:
                    self._replaced[place] += 1
                return sample
            # the next one in evaluation, where the same run must give the same numbers
            step = 1 if self.kind != "train" else int(torch.randint(1, max(2, len(self)), ()))
            tried = (tried + step) % len(self)
        raise TooManyBadVideosError(
            f"{self.retries + 1} videos in a row cannot be read, {self._listing()}; check data.root, or leave them out "
            "with data.exclude"
        )

    def _to_predict(self, place: int) -> tuple[Tensor, Any]:
        """The views of a file and its item; blank ones, and the item marked, if it cannot be read."""
        try:
            return self._read(place)
        except READ_ERRORS as error:
            self._bad[place] = True
            blank = self.transform(torch.zeros(self.sampler.num_frames, 3, 32, 32, dtype=torch.uint8))
            # (crops, 3, T, H, W) -> (clips crops, 3, T, H, W)
            return blank.repeat(self.clips, 1, 1, 1, 1), unreadable(self.samples[place][1]["label"], error)

    def _try(self, place: int) -> tuple[Any, ...] | None:
        """One sample, or `None` for a bad file."""
        try:
            return self._read(place)
        except (CorruptVideoError, FileNotFoundError) as error:
            self._mark(place, str(error).split("; ")[0])
            return None

    def _read(self, place: int) -> tuple[Any, ...]:
        path, label = self.samples[place]
        with self._open(place, path) as video:
            if self.kind == "train":
                clip = self.transform(video.frames(self._random_window(video.index)))
                return clip, label["label"]
            windows = self.sampler.even(video.index, self.clips)
            # all clips in one pass over the file: (clips T, 3, H, W) -> (clips, T, 3, H, W)
            frames = video.frames([at for window in windows for at in window]).unflatten(0, (self.clips, -1))
        views = torch.cat([self.transform(clip) for clip in frames])  # (clips crops, 3, T, H, W)
        if self.kind == "test":
            return views, label["label"], place
        return views[0] if self.kind == "val" else views, label["label"]

    def _random_window(self, index: VideoIndex) -> list[int]:
        """A clip at a random time. PyTorchVideo draws with Python's `random`; what the loader seeds is torch's."""
        state = random.getstate()
        random.seed(int(torch.randint(1 << 62, ())))
        try:
            return self.sampler.random(index)
        finally:
            random.setstate(state)

    def _open(self, place: int, path: str) -> "VideoReader | _CachedVideo":
        if self._cache is None:
            return open_video(path, self.decoder, self.threads)
        if place not in self._cache:
            with open_video(path, self.decoder, self.threads) as video:
                self._cache[place] = _CachedVideo(video)
        return self._cache[place]

    def _mark(self, place: int, reason: str) -> None:
        with self._lock:  # two workers may meet the same file as a replacement
            new = not self._bad[place]
            self._bad[place] = True
        if new:
            _log.warning("another video takes its place: %s (%d bad so far)", reason, int(self._bad.sum()))
        if int(self._bad.sum()) > self.max_bad_share * len(self):
            raise TooManyBadVideosError(
                f"{int(self._bad.sum())} of {len(self)} videos are bad, more than data.max_bad_share="
                f"{self.max_bad_share:g} allows: {self._listing()}; repair them, or leave them out with data.exclude "
                "(lookupvit check-data writes the list)"
            )

    def _listing(self) -> str:
        bad = self.bad
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        return ", ".join(bad[:_NAMED]) + more


class _CachedVideo:
    """All frames of a video in memory, with the calls of `VideoReader` that a data set needs."""

    def __init__(self, video: VideoReader) -> None:
        self.index = video.index
        self._frames = video.frames(range(len(video)))  # (n, 3, H, W)

    def __enter__(self) -> "_CachedVideo":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def frames(self, places: Sequence[int]) -> Tensor:
        return self._frames[list(places)]


class BadVideoReport(Callback):
    """Says at the end of each epoch how many clips were replaced, and logs the share as `train/replaced_share`.

    Args:
        datasets: The data sets of a DataModule by name, of which `train` is watched.
    """

    def __init__(self, datasets: dict[str, VideoDataset]) -> None:
        self._datasets, self._before = datasets, 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by the trainer."""
        dataset = self._datasets["train"]
        now = dataset.replaced
        replaced, self._before = now - self._before, now
        share = replaced / max(1, len(dataset) // trainer.world_size)
        pl_module.log("train/replaced_share", share, sync_dist=True, on_epoch=True, on_step=False)
        if replaced:
            rank_zero_info(
                f"epoch {trainer.current_epoch}: {replaced} clips ({share:.1%}) were of another video, in place of one "
                f"of {len(dataset.bad)} bad files"
            )
