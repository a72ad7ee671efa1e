"""Which frames make a clip: PyTorchVideo's random sampler for training, evenly spaced clips up to the end for tests.

Clips are windows in seconds, as PyTorchVideo has them: the frames with `start <= time < end`, counted from the first
frame. Of the frames of a window either every `frame_stride`-th is taken, or `num_frames` evenly spaced ones.

Letters: `n` frames of the video, `T` frames of a clip.
"""

from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import torch
from pytorchvideo.data.clip_sampling import ClipInfo, ClipSampler, RandomClipSampler

from datamodules.video.index import VideoIndex

SHORT_CLIPS = ("repeat", "loop")


class EndAlignedClipSampler(ClipSampler):
    """Evenly spaced clips of a video, the first at its start and the last at its end; a single one lies in the middle.

    PyTorchVideo's `constant_clips_per_video` divides by the number of clips, and so leaves the end unseen.

    Args:
        clip_duration: Seconds.
        clips_per_video: Number of clips.
    """

    def __init__(self, clip_duration: float | Fraction, clips_per_video: int) -> None:
        super().__init__(clip_duration)
        self._clips_per_video = clips_per_video

    def __call__(
        self, last_clip_time: float | Fraction, video_duration: float | Fraction, annotation: dict[str, Any]
    ) -> ClipInfo:
        """The next clip; after the last one it starts over.

        Args:
            last_clip_time: Not used.
            video_duration: Seconds.
            annotation: Not used.
        """
        room = max(Fraction(video_duration) - self._clip_duration, Fraction(0))
        clip, clips = self._current_clip_index, self._clips_per_video
        start = room * Fraction(clip, clips - 1) if clips > 1 else room / 2
        self._current_clip_index = (clip + 1) % clips
        return ClipInfo(start, start + self._clip_duration, clip, 0, clip == clips - 1)

    def reset(self) -> None:
        """Start with the first clip again."""
        self._current_clip_index = 0


class FrameSampler:
    """Places of the frames of a video's clips.

    Args:
        num_frames: T.
        frame_stride: Distance of two frames of a clip, in frames of the file; unused with `clip_seconds`.
        clip_seconds: Length of a clip, whatever the frame rate; T frames are spread evenly over it, by PyTorchVideo's
            rule (`UniformTemporalSubsample`).
        short_clip: Where the video has fewer frames than a clip spans: `repeat` its last frame, or `loop`.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        num_frames: int,
        frame_stride: int = 1,
        clip_seconds: float | None = None,
        short_clip: str = "repeat",
    ) -> None:
        for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
            if value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if clip_seconds is not None and clip_seconds <= 0:
            raise ValueError(f"data.clip_seconds must be positive, got {clip_seconds}; null uses data.frame_stride")
        if short_clip not in SHORT_CLIPS:
            raise ValueError(f"unknown data.short_clip {short_clip!r}: valid: {', '.join(SHORT_CLIPS)}")
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.clip_seconds, self.short_clip = clip_seconds, short_clip
        self._span = (num_frames - 1) * frame_stride + 1  # from the first to the last frame of a clip

    def random(self, index: VideoIndex) -> list[int]:
        """T places of one clip at a random time (Python's `random`, as PyTorchVideo's sampler has it)."""
        clip = RandomClipSampler(self._seconds(index))(0, index.duration, {})
        return self.places(index, clip.clip_start_sec, clip.clip_end_sec)

    def even(self, index: VideoIndex, clips: int) -> list[list[int]]:
        """T places of each of `clips` clips, evenly spaced from start to end."""
        sampler = EndAlignedClipSampler(self._seconds(index), clips)
        windows = [sampler(0, index.duration, {}) for _ in range(clips)]
        return [self.places(index, window.clip_start_sec, window.clip_end_sec) for window in windows]

    def places(self, index: VideoIndex, start: Fraction, end: Fraction) -> list[int]:
        """T places of the clip in one window.

        Args:
            index: Index of the video.
            start: Seconds after the first frame, included.
            end: Seconds after the first frame, not included.
        """
        first, stop = (
            int(np.searchsorted(index.pts, ceil(time / index.time_base) + int(index.pts[0]))) for time in (start, end)
        )
        n, T = len(index.pts), self.num_frames
        if self.clip_seconds is None:
            # with an uneven frame rate a window near the end may hold fewer frames than a clip spans
            first = max(0, min(first, n - self._span))
            chosen = first + self.frame_stride * torch.arange(T)
            return self._inside(chosen, n)
        first = min(first, n - 1)
        # A window that reaches past the end also counts the frames that its length beyond the end would hold.
        beyond = end - index.duration
        count = max(1, stop - first) + (max(0, round(float(beyond) * index.fps)) if stop == n else 0)
        return self._inside(first + torch.linspace(0, count - 1, T).long(), n)

    def _inside(self, places: torch.Tensor, n: int) -> list[int]:
        return (places.clamp(max=n - 1) if self.short_clip == "repeat" else places % n).tolist()

    def _seconds(self, index: VideoIndex) -> Fraction:
        if self.clip_seconds is not None:
            return Fraction(self.clip_seconds).limit_denominator(1_000_000)  # 2.56 means 64/25
        return self._span * index.duration / len(index.pts)  # frames / (frames per second)
