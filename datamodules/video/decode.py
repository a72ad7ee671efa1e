"""Decodes chosen frames of a video file, with one of two decoders.

First an index is made in one pass over the packets, without decoding. It says how many frames there are and when each
of them is shown, so that clips can be chosen before anything is decoded; and it finds truncated files. Then the reader
seeks to the key frame before each wanted frame.

Letters: `n` frames, `H, W` height and width of a frame, upright.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from types import TracebackType

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from datamodules.loading.untrusted import LOCAL_VIDEO
from datamodules.video.index import CorruptVideoError, VideoIndex, read_index

DECODERS = ("auto", "pyav", "torchcodec")
_EXACT_IN_TORCHCODEC = {"mp4", "webm", "avi"}  # containers; webm stands for Matroska, too


class VideoReader:
    """Frames of one video file by PyAV; a context manager that closes what it opens.

    Args:
        path: A video file; audio is never read.
        threads: Threads of the decoder; 1 suits loader processes, of which there are many.

    Attributes:
        index: Number and times of the frames.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptVideoError: The file is empty, truncated, damaged, or no video.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1) -> None:
        self.path = os.fspath(path)
        self._container: av.container.InputContainer | None = None
        try:
            if os.path.getsize(self.path) == 0:
                raise CorruptVideoError.for_file(self.path, "the file is empty")
            # Titles inside the file may be in any encoding; nothing here reads them.
            # A playlist that is named like a video must not make FFmpeg open other files or addresses: untrusted.py.
            self._container = av.open(f"file:{self.path}", metadata_errors="ignore", options=dict(LOCAL_VIDEO))
            if not self._container.streams.video:
                raise CorruptVideoError.for_file(self.path, "it holds no video stream")
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = threads
            self._stream.thread_type = "AUTO" if threads != 1 else "NONE"
            self.index: VideoIndex = read_index(self.path, self._container, self._stream)
        except FileNotFoundError:
            raise FileNotFoundError(f"no video file {self.path!r}: it was there when the data set was listed") from None
        except (av.FFmpegError, ValueError) as error:
            self.close()
            if isinstance(error, CorruptVideoError):
                raise
            raise CorruptVideoError.for_file(self.path, _reason(error)) from error
        self._reformatter = VideoReformatter()  # one for all frames: it keeps its conversion tables

    def __len__(self) -> int:
        return len(self.index.pts)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames(self, indices: Sequence[int]) -> Tensor:
        """Decode the frames at some places, which may come in any order and more than once.

        Args:
            indices: Places from 0 to `len(self) - 1`, in the order in which the frames are shown.

        Returns:
            uint8 tensor `(len(indices), 3, H, W)`.

        Raises:
            CorruptVideoError: One of them cannot be decoded.
        """
        wanted = sorted(set(indices))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(self):
            raise ValueError(f"{self.path!r} has frames 0 to {len(self) - 1}, asked for {list(indices)}")
        try:
            found = self._decode(wanted)
        except av.FFmpegError as error:
            raise CorruptVideoError.for_file(self.path, _reason(error)) from error
        missing = [place for place in wanted if place not in found]
        if missing:
            raise CorruptVideoError.for_file(self.path, f"frame {missing[0]} of {len(self)} cannot be decoded")
        return _stack([found[place] for place in indices])

    def _decode(self, wanted: list[int]) -> dict[int, np.ndarray]:
        if not self.index.timed:
            return self._decode_in_sequence(wanted)
        found: dict[int, np.ndarray] = {}
        for key, group in groupby(wanted, self.index.key_of):
            places = list(group)
            if not self._decode_from(key, places, found):
                return self._decode_in_sequence(wanted)
            if any(place not in found for place in places):
                # A key frame that needs frames before it: once more, from the start and without skipping any frame.
                self._decode_from(0, places, found, complete=True)
        return found

    def _decode_from(self, key: int, places: list[int], found: dict[int, np.ndarray], complete: bool = False) -> bool:
        """Decodes from a key frame on; False if the frames do not come in the order of their timestamps."""
        pts = self.index.pts
        missing = {int(pts[place]): place for place in places}
        context, last = self._stream.codec_context, None
        self._seek(key)
        for packet in self._container.demux(self._stream):
            # A frame that is neither wanted nor referred to by another frame is not decoded.
            skip = not complete and packet.pts is not None and packet.pts not in missing
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            for frame in packet.decode():
                if last is not None and frame.pts is not None and frame.pts < last:
                    return False
                last = frame.pts
                place = missing.pop(frame.pts, None)
                if place is not None:
                    found[place] = self._array(frame, place)
            if not missing:
                break
        return True

    def _decode_in_sequence(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Decodes from the start and counts the frames: right for any timestamps, but slow."""
        self._seek(0)
        self._stream.codec_context.skip_frame = "DEFAULT"
        found, missing = {}, set(wanted)
        for place, frame in enumerate(self._container.decode(self._stream)):
            if place in missing:
                found[place] = self._array(frame, place)
                missing.discard(place)
                if not missing:
                    break
        return found

    def _seek(self, key: int) -> None:
        target = int(self.index.seek[key])
        self._container.seek(target, stream=self._stream, backward=True, any_frame=False)

    def _array(self, frame: av.VideoFrame, place: int) -> np.ndarray:
        """uint8 `(H, W, 3)`, upright."""
        if frame.is_corrupt:
            raise CorruptVideoError.for_file(self.path, f"frame {place} of {len(self)} is damaged")
        width, height = self.index.coded_size
        array = self._reformatter.reformat(frame, width, height, "rgb24").to_ndarray()
        # the display matrix of a phone's video: degrees counterclockwise
        return np.rot90(array, round(frame.rotation / 90)) if frame.rotation else array


class TorchCodecReader(VideoReader):
    """As `VideoReader`, but TorchCodec decodes in its exact mode where that gives the same frames.

    PyAV decides which files are corrupt. It also decodes three kinds of files itself: those with timestamps out of
    order; those in which TorchCodec counts another number of frames (edit lists); and containers in which TorchCodec
    does not seek exactly (in MPEG program streams it silently returns wrong frames).
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1) -> None:
        super().__init__(path, threads)
        self._threads = threads

    def _decode(self, wanted: list[int]) -> dict[int, np.ndarray]:
        from torchcodec.decoders import VideoDecoder

        if self.index.timed and _EXACT_IN_TORCHCODEC & set(self._container.format.name.split(",")):
            options = {"dimension_order": "NHWC", "num_ffmpeg_threads": self._threads}
            try:
                decoder = VideoDecoder(self.path, stream_index=self._stream.index, **options)
                if len(decoder) == len(self):
                    return dict(zip(wanted, decoder.get_frames_at(wanted).data.numpy(), strict=True))
            except RuntimeError:  # a file that it cannot read: PyAV decodes it, or says what is wrong with it
                pass
        return super()._decode(wanted)


def open_video(path: str | os.PathLike, decoder: str = "auto", threads: int = 1) -> VideoReader:
    """A reader of one video file; close it, or use it in `with`.

    Args:
        path: The file.
        decoder: `pyav`, `torchcodec`, or `auto` (TorchCodec where it loads, else PyAV).
        threads: Threads of the decoder.

    Raises:
        ValueError: `torchcodec` was asked for and does not load, or the name is unknown.
        FileNotFoundError: There is no such file.
        CorruptVideoError: The file is empty, truncated, damaged, or no video.
    """
    return (TorchCodecReader if choose_decoder(decoder) == "torchcodec" else VideoReader)(path, threads)


def choose_decoder(decoder: str) -> str:
    """`pyav` or `torchcodec`: the decoder that a name stands for on this machine; errors as in `open_video`."""
    if decoder not in DECODERS:
        raise ValueError(f"unknown data.decoder {decoder!r}: valid: {', '.join(DECODERS)}")
    if decoder == "pyav":
        return "pyav"
    problem = _torchcodec_problem()
    if decoder == "torchcodec" and problem:
        raise ValueError(
            f"data.decoder=torchcodec, but TorchCodec does not load ({problem}): install torchcodec and FFmpeg's "
            "shared libraries, or set data.decoder=pyav"
        )
    return "pyav" if problem else "torchcodec"


@cache
def _torchcodec_problem() -> str:
    """Why TorchCodec cannot be used; empty if it can."""
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(b"")  # the first use may be what loads FFmpeg's libraries
    except (ImportError, OSError) as error:
        return _reason(error)
    except (RuntimeError, ValueError) as error:  # missing libraries, or only that no bytes are no video
        missing = "load libtorchcodec" in str(error)
        return "FFmpeg's libraries are not found, or TorchCodec is made for another torch" if missing else ""
    return ""


def check_video(path: str | os.PathLike) -> int:
    """Decodes a whole file frame by frame and keeps none.

    Returns:
        Number of frames.

    Raises:
        FileNotFoundError, CorruptVideoError: As `VideoReader`.
    """
    with VideoReader(path) as video:
        count = 0
        try:
            video._seek(0)
            for count, frame in enumerate(video._container.decode(video._stream), 1):
                if frame.is_corrupt:
                    raise CorruptVideoError.for_file(video.path, f"frame {count - 1} of {len(video)} is damaged")
        except av.FFmpegError as error:
            raise CorruptVideoError.for_file(video.path, f"after frame {count}: {_reason(error)}") from error
        # At a cut in the file a decoder may hold back a frame or two; more missing frames are damage.
        if count < len(video) - max(2, len(video) // 50):
            raise CorruptVideoError.for_file(video.path, f"only {count} of {len(video)} frames can be decoded")
        return count


def _reason(error: BaseException) -> str:
    """The first line of an error, without the path that FFmpeg's errors repeat."""
    text = str(getattr(error, "strerror", "") or error).strip()
    return text.splitlines()[0].rstrip(".: ") if text else type(error).__name__


def _stack(frames: list[np.ndarray]) -> Tensor:
    """Frames `(H, W, 3)` to `(n, 3, H, W)` with one copy. In memory the channels stay last: resizing is faster so."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)  # (n, H, W, 3) -> (n, 3, H, W)
