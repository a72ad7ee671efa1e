"""Tiny real video files for the tests, written by PyAV and read back by its plainest loop."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


def moving(frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3): a bright square that wanders over a smooth ground, so that every frame is another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 3 + rng.integers(60), y * 4 + rng.integers(60), (x + y) * 2], -1) % 150
    clip = np.repeat(ground[None].astype(np.uint8), frames, 0)
    for at, picture in enumerate(clip):
        top, left = (at * 3 + seed) % (height - 8), (at * 5 + 2 * seed) % (width - 8)
        picture[top : top + 8, left : left + 8] = (250, 255 - at % 200, 40 + at % 200)
    return clip


def write(
    path: Path,
    frames: int = 40,
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    rotation: int = 0,
    audio: bool = False,
    seed: int = 0,
    size: tuple[int, int] = (32, 48),
    **container: str,
) -> Path:
    """One video; `ticks` are the times of its frames in 1/1000 s, for an uneven frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=fps, options={"g": "12"} if options is None else options)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = file.add_stream("mp3" if path.suffix == ".avi" else "aac", rate=44100) if audio else None
        for at, picture in enumerate(moving(frames, *size, seed=seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[at], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            tone = np.sin(np.arange(44100 * 3) / 20).astype(np.float32)[None]
            for start in range(0, tone.shape[1], 1024):
                samples = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 44100, start
                file.mux(sound.encode(samples))
            file.mux(sound.encode())
    return path


def decode_all(path: Path) -> torch.Tensor:
    """uint8 (n, 3, H, W): every frame in the order in which the decoder gives them, nothing turned."""
    with av.open(str(path)) as file:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def damage(path: Path, kind: str) -> Path:
    """Makes a file empty, cut in half, or noise."""
    data = path.read_bytes()
    noise = np.random.default_rng(0).bytes(2000)
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "garbage": noise}[kind])
    return path
