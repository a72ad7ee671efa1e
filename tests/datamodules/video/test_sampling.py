"""Which frames a clip has: by hand, and as PyTorchVideo has them where it defines them."""

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import video_files as files
from pytorchvideo.data.clip_sampling import make_clip_sampler
from pytorchvideo.data.encoded_video import EncodedVideo
from torchvision.transforms.v2.functional import uniform_temporal_subsample

from datamodules.video.decode import open_video
from datamodules.video.index import VideoIndex
from datamodules.video.sampling import EndAlignedClipSampler, FrameSampler


def index_of(pts: list[int], last: int = 1, base: Fraction = Fraction(1, 10)) -> VideoIndex:
    duration = (pts[-1] - pts[0] + last) * base
    keys = np.array(pts[:1])
    return VideoIndex(np.array(pts), base, duration, float(len(pts) / duration), keys, keys, True, (8, 8))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write(tmp_path_factory.mktemp("clips") / "a.mp4", frames=50)


def test_evenly_spaced_clips_reach_the_end() -> None:
    index = index_of(list(range(5, 35)))  # 30 frames at 10 a second, which do not start at 0
    sampler = FrameSampler(4, 2)  # spans 7 frames
    assert sampler.even(index, 3) == [[0, 2, 4, 6], [12, 14, 16, 18], [23, 25, 27, 29]]
    assert sampler.even(index, 1) == [[12, 14, 16, 18]]  # 11.5 frames before it: the next one
    assert FrameSampler(3, clip_seconds=0.6).even(index, 2) == [[0, 2, 5], [24, 26, 29]]


def test_clip_sampler_starts_over_and_pytorchvideos_stops_short() -> None:
    ours, theirs = EndAlignedClipSampler(2, 4), make_clip_sampler("constant_clips_per_video", 2, 4)
    for _ in range(2):
        clips = [ours(0, 8, {}) for _ in range(4)]
        assert [clip.clip_start_sec for clip in clips] == [0, 2, 4, 6]
        assert [clip.is_last_clip for clip in clips] == [False, False, False, True]
    assert max(theirs(0, 8, {}).clip_end_sec for _ in range(4)) < 8  # why there is one of our own


def test_short_videos() -> None:
    index = index_of([0, 1, 2, 3, 4])
    assert FrameSampler(4, 2).even(index, 2) == [[0, 2, 4, 4]] * 2
    assert FrameSampler(4, 2, short_clip="loop").random(index) == [0, 2, 4, 1]
    assert FrameSampler(4, clip_seconds=1.0).random(index) == [0, 3, 4, 4]  # of 10 frames 0, 3, 6, 9
    assert FrameSampler(4, clip_seconds=1.0, short_clip="loop").random(index) == [0, 3, 1, 4]
    assert FrameSampler(1, 3).random(index_of([7])) == [0]


def test_uneven_frame_rate_in_seconds_and_in_frames() -> None:
    index = index_of([0, 1, 2, 10, 11, 30, 31, 32], last=8)  # 4 seconds
    assert FrameSampler(3, clip_seconds=1.1).places(index, Fraction(0), Fraction("1.1")) == [0, 1, 3]
    assert FrameSampler(3, clip_seconds=1.0).places(index, Fraction(3), Fraction(4)) == [5, 6, 7]
    assert FrameSampler(3, 2).places(index, Fraction(3), Fraction(4)) == [3, 5, 7]  # moved back: all inside


def test_random_clips_are_pytorchvideos() -> None:
    index, sampler = index_of(list(range(40))), FrameSampler(4, 3)
    random.seed(5)
    ours = [sampler.random(index) for _ in range(200)]
    random.seed(5)
    theirs = make_clip_sampler("random", Fraction(1))  # spans 10 frames of 0.1 seconds
    starts = [-int(-theirs(0, index.duration, {}).clip_start_sec * 10 // 1) for _ in range(200)]
    assert ours == [[start + step for step in (0, 3, 6, 9)] for start in starts]
    assert {clip[0] for clip in ours} == set(range(1, 31))  # every place; 0 needs a draw of exactly 0


@pytest.mark.parametrize("seconds", [Fraction(8, 25), Fraction("0.5"), Fraction(1)])
def test_decoded_clips_equal_pytorchvideos(video: Path, seconds: Fraction) -> None:
    sampler, random_clip = FrameSampler(5, clip_seconds=float(seconds)), make_clip_sampler("random", seconds)
    random.seed(1)
    with open_video(video, "pyav") as ours:
        theirs = EncodedVideo.from_path(str(video), decode_audio=False)
        assert theirs.duration == ours.index.duration
        for _ in range(6):
            clip = random_clip(0, theirs.duration, {})
            window = theirs.get_clip(clip.clip_start_sec, clip.clip_end_sec)["video"]  # (3, n, H, W)
            # PyTorchVideo's own copy of this function cannot be imported beside today's torchvision
            expected = uniform_temporal_subsample(window.transpose(0, 1), 5).to(torch.uint8)
            found = ours.frames(sampler.places(ours.index, clip.clip_start_sec, clip.clip_end_sec))
            assert torch.equal(found, expected)
        theirs.close()


def test_every_nth_frame_of_pytorchvideos_window(video: Path) -> None:
    sampler = FrameSampler(4, 3)  # spans 10 frames, 0.4 seconds
    with open_video(video, "pyav") as ours:
        theirs = EncodedVideo.from_path(str(video), decode_audio=False)
        for places, clip in zip(
            sampler.even(ours.index, 3), [(0, Fraction(2, 5)), (Fraction(4, 5),) * 2, (Fraction(8, 5), 2)], strict=True
        ):
            window = theirs.get_clip(clip[0], clip[0] + Fraction(2, 5))["video"][:, ::3].transpose(0, 1)
            assert torch.equal(ours.frames(places), window.to(torch.uint8))
        theirs.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "data.num_frames must be at least 1, got 0"),
        ({"num_frames": 2, "frame_stride": 0}, "data.frame_stride must be at least 1"),
        ({"num_frames": 2, "clip_seconds": 0.0}, "data.clip_seconds must be positive"),
        ({"num_frames": 2, "short_clip": "pad"}, "unknown data.short_clip 'pad': valid: repeat, loop"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameSampler(**options)
