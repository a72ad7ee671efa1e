"""Number, times and key frames of a video, from its packets alone: nothing is decoded."""

import os
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.stream import Discard

from datamodules.loading.untrusted import MAX_FRAME_PIXELS, check_pixels
from datamodules.loading.workers import OneLineError

_MISSING_SHARE = 0.1  # a file that lacks more than this share of the length that it declares is truncated
# These containers store no timestamps: where frames are reordered, every timestamp is a guess.
_WITHOUT_TIMESTAMPS = ("avi",)


class CorruptVideoError(OneLineError):
    """A video that cannot be decoded; its text is one line that names the file and the remedy."""

    @classmethod
    def for_file(cls, path: str, reason: str) -> "CorruptVideoError":
        """The error for one file and one reason."""
        size = f"{os.path.getsize(path)} bytes" if os.path.exists(path) else "missing"
        return cls(
            f"cannot decode the video {path!r} ({size}): {reason}; replace the file, or leave it out with data.exclude "
            "(lookupvit check-data writes the list)"
        )


@dataclass(frozen=True)
class VideoIndex:
    """What is known about a video before anything is decoded.

    Attributes:
        pts: int64 `(n,)`, ascending: when each frame is shown, in ticks of `time_base`.
        time_base: Seconds per tick.
        duration: Seconds from the first frame to the end of the last.
        fps: Mean frames per second.
        keys: int64, ascending: timestamps of the key frames.
        seek: int64, one per key frame: the timestamp to seek to for it.
        timed: Whether frames can be found by their timestamps; otherwise only by counting from the start.
        coded_size: (width, height) in pixels, as stored.
    """

    pts: np.ndarray
    time_base: Fraction
    duration: Fraction
    fps: float
    keys: np.ndarray
    seek: np.ndarray
    timed: bool
    coded_size: tuple[int, int]

    def key_of(self, place: int) -> int:
        """The key frame to start from to decode a frame: the last one that is not shown later (0 if there is none)."""
        return max(0, bisect_right(self.keys, self.pts[place]) - 1)


def read_index(path: str, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> VideoIndex:
    """Read all packets of the video stream.

    Args:
        path: Name of the file in errors.
        container: The file, just opened.
        stream: The video stream in it.

    Raises:
        CorruptVideoError: There is no frame, or the file holds less than it declares.
        av.FFmpegError: The file cannot be read.
    """
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # audio is not even read, where the container allows that
    packets: list[tuple[int | None, int | None, bool, int]] = []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise CorruptVideoError.for_file(path, f"truncated after {len(packets)} frames")
        if packet.size and not packet.is_discard:  # without size: the end; discarded: before the start of an edit list
            packets.append((packet.pts, packet.dts, packet.is_keyframe, packet.duration or 0))
    if not packets:
        raise CorruptVideoError.for_file(path, "it holds no frame")
    context = stream.codec_context
    try:
        check_pixels(context.width, context.height, MAX_FRAME_PIXELS)
    except ValueError as error:
        raise CorruptVideoError.for_file(path, str(error)) from None
    named = all(pts is not None for pts, *_ in packets)
    times = [pts if named else (dts if dts is not None else place) for place, (pts, dts, *_) in enumerate(packets)]
    timed = named and len(set(times)) == len(times)
    if context.has_b_frames and any(name in container.format.name.split(",") for name in _WITHOUT_TIMESTAMPS):
        timed = False
    pts = np.sort(np.asarray(times, np.int64))
    last = packets[-1][3] or (int(np.median(np.diff(pts))) if len(pts) > 1 else 1)
    time_base = Fraction(stream.time_base)
    duration = (int(pts[-1]) - int(pts[0]) + max(last, 1)) * time_base
    _check_length(path, container, stream, len(packets), float(duration))
    # The first frame counts as a key frame, whatever its flag says: there is nothing before it.
    keys = sorted(
        (times[place], min(times[place], dts if dts is not None else times[place]))
        for place, (_, dts, is_key, _) in enumerate(packets)
        if is_key or place == 0
    )
    return VideoIndex(
        pts=pts,
        time_base=time_base,
        duration=duration,
        fps=float(len(pts) / duration),
        keys=np.asarray([key for key, _ in keys], np.int64),
        seek=np.asarray([target for _, target in keys], np.int64),
        timed=timed,
        coded_size=(context.width, context.height),
    )


def _check_length(
    path: str, container: av.container.InputContainer, stream: av.video.stream.VideoStream, count: int, seconds: float
) -> None:
    """Raises a `CorruptVideoError` where the file declares many more frames, or much more time, than it holds."""
    if "mp4" in container.format.name.split(","):
        return  # an edit list may hide frames; a truncated mp4 is found by its packets beyond the end of the file
    # Two frames may be missing: the declared length of a short video is rounded.
    if stream.frames and count + 2 < stream.frames * (1 - _MISSING_SHARE):
        declared = f"{count} of the {stream.frames} frames that it declares"
    else:
        length = stream.duration * stream.time_base if stream.duration else None
        if length is None and len(container.streams) == 1 and container.duration:
            length = Fraction(container.duration, av.time_base)  # with audio it could be the audio's
        if length is None or seconds + 2 * seconds / count >= float(length) * (1 - _MISSING_SHARE):
            return
        declared = f"{seconds:.2f} of the {float(length):.2f} seconds that it declares"
    raise CorruptVideoError.for_file(path, f"truncated: it holds {declared}")
