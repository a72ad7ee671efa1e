"""Frames by their place equal a full sequential decode, whatever the codec, the container and the timestamps."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import video_files as files

from datamodules.video import decode as video_io
from datamodules.video.decode import VideoReader, check_video, choose_decoder, open_video
from datamodules.video.index import CorruptVideoError

REAL = Path(__file__).parents[4] / "shared/data/videos"
KINDS = {
    "h264.mp4": {},  # with B-frames: stored out of the order in which they are shown
    "open_gop.mp4": {"options": {"g": "10", "x264-params": "open-gop=1:bframes=3:scenecut=0"}},
    "front.mp4": {"movflags": "faststart"},
    "audio.mp4": {"audio": True},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}, "audio": True},
    "mjpeg.avi": {"codec": "mjpeg", "options": {}, "pix_fmt": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
}


def decoders() -> list:
    problem = video_io._torchcodec_problem()
    return ["pyav", pytest.param("torchcodec", marks=pytest.mark.skipif(bool(problem), reason=problem))]


def same_as_sequential(path: Path, decoder: str, draws: int) -> None:
    reference = files.decode_all(path)
    rng = random.Random(0)
    with open_video(path, decoder) as video:
        assert len(video) == len(reference)
        assert torch.equal(video.frames(range(len(video))), reference)
        for _ in range(draws):
            places = [rng.randrange(len(reference)) for _ in range(rng.randint(1, 5))]  # any order, also twice
            assert torch.equal(video.frames(places), reference[places]), places
        window = range(len(reference) // 3, len(reference), 4)
        assert torch.equal(video.frames(window), reference[list(window)])


@pytest.mark.parametrize("decoder", decoders())
@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_a_sequential_decode(name: str, decoder: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / name, **KINDS[name])
    same_as_sequential(path, decoder, draws=12)


@pytest.mark.parametrize("decoder", decoders())
@pytest.mark.parametrize("name", ["demo.mp4", "test.mp4", "test.avi"])
def test_real_videos(name: str, decoder: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"no {REAL / name}")
    same_as_sequential(REAL / name, decoder, draws=6)


def test_what_is_not_wanted_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write(tmp_path / "long.mp4", frames=120)
    seen = []
    monkeypatch.setattr(VideoReader, "_array", lambda self, frame, place: seen.append(frame.pts) or np.zeros((2, 2, 3)))
    seeks = []
    seek = VideoReader._seek
    monkeypatch.setattr(VideoReader, "_seek", lambda self, key: seeks.append(key) or seek(self, key))
    with VideoReader(path) as video:
        video.frames([100, 3, 4])
        assert len(seen) == 3 and seeks == [0, 100 // 12]


def test_times_of_an_uneven_frame_rate(tmp_path: Path) -> None:
    ticks = [0, 40, 80, 500, 540, 1200, 1240, 1280, 2000, 2040]
    path = files.write(tmp_path / "vfr.mp4", frames=10, ticks=ticks)
    with VideoReader(path) as video:
        seconds = (video.index.pts - video.index.pts[0]) * float(video.index.time_base)
        assert np.allclose(seconds, np.array(ticks) / 1000, atol=1e-3)
    same_as_sequential(path, "pyav", draws=5)


@pytest.mark.parametrize("decoder", decoders())
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_phone_video_comes_out_upright(degrees: int, decoder: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "phone.mp4", frames=6, rotation=degrees)
    plain = files.decode_all(path)  # as they lie in the file: an encoder need not give the same bytes twice
    assert plain.shape != torch.rot90(plain, dims=(2, 3)).shape
    with open_video(path, decoder) as video:
        frames = video.frames(range(6))
    # set_display_rotation counts counterclockwise; rot90 on (H, W) with y downwards does, too
    assert torch.equal(frames, torch.rot90(plain, degrees // 90, dims=(2, 3)))


@pytest.mark.parametrize("kind", ["empty", "truncated", "garbage"])
@pytest.mark.parametrize("name", ["h264.mp4", "front.mp4", "vp9.webm", "mpeg4.avi", "h264.mkv"])
def test_damaged_files_are_named_before_anything_is_decoded(kind: str, name: str, tmp_path: Path) -> None:
    path = files.damage(files.write(tmp_path / name, **KINDS[name]), kind)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with pytest.raises(CorruptVideoError) as error:
        VideoReader(path)
    text = str(error.value)
    assert repr(str(path)) in text and "data.exclude" in text and "\n" not in text
    if before is not None:
        del error
        assert len(os.listdir("/proc/self/fd")) == before  # nothing stays open


def test_a_file_without_video_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no video file .*nothing\.mp4"):
        VideoReader(tmp_path / "nothing.mp4")
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    with pytest.raises(CorruptVideoError, match=r"text\.mp4"):
        VideoReader(tmp_path / "text.mp4")


def test_damage_in_the_middle_is_found_by_the_check(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.mp4", frames=60, options={"g": "60"}, seed=3)
    assert check_video(path) == 60
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    data[start : start + 1200] = bytes(1200)
    path.write_bytes(data)
    with pytest.raises(CorruptVideoError):
        check_video(path)


def test_decoders_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown data\.decoder 'decord': valid: auto, pyav, torchcodec"):
        choose_decoder("decord")
    monkeypatch.setattr(video_io, "_torchcodec_problem", lambda: "no FFmpeg")
    assert choose_decoder("auto") == "pyav"
    with pytest.raises(ValueError, match=r"TorchCodec does not load \(no FFmpeg\).*data\.decoder=pyav"):
        choose_decoder("torchcodec")
    monkeypatch.setattr(video_io, "_torchcodec_problem", lambda: "")
    assert choose_decoder("auto") == choose_decoder("torchcodec") == "torchcodec"
