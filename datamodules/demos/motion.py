"""The motion demo: ten motions, written as real video files in the layouts of Kinetics and of Something-Something.

What is drawn is in `motion_clips`; here it is written, and read back like any other videos.
"""

import csv
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

from datamodules.demos.motion_clips import CLASSES, draw_clip
from datamodules.demos.rendering import Rendered, progress, render_once, samples_of
from datamodules.video.datamodule import VideoDataModule
from datamodules.video.kinetics import KineticsDataModule
from datamodules.video.listing import VideoList
from datamodules.video.ssv2 import SSv2DataModule

LAYOUTS = ("csv", "folders", "list", "ssv2")
_MARKER = "motion.json"
_VERSION = 1  # of the drawing; raise it when the clips change
_FPS = 12
_CODECS = {  # nearly lossless: what an encoder leaves out could tell the class
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "12"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "0"}),
}


def write_video(path: str | Path, frames: np.ndarray, fps: int = _FPS) -> None:
    """Write one video file.

    Args:
        path: `.mp4` (H.264) or `.webm` (VP9).
        frames: uint8 `(T, H, W, 3)`, even H and W.
        fps: Frames per second.
    """
    codec, options = _CODECS[Path(path).suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # fewer differences between runs; x264 still has some
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def render_motion(
    root: str | Path,
    layout: str = "csv",
    seed: int = 0,
    train_per_class: int = 300,
    val_per_class: int = 50,
    size: int = 32,
    frames: int = 16,
) -> bool:
    """Write the clips, and their annotations. The same arguments draw the same frames; the encoder may vary.

    Nothing is written where the same data set already lies; an interrupted run leaves no half of one.

    Args:
        root: Folder to make.
        layout: `csv`, `folders` or `list` (Kinetics, mp4), or `ssv2` (webm).
        seed: Seed of the clips.
        train_per_class: Training clips of each of the 10 classes.
        val_per_class: Validation clips of each class.
        size: Pixels of both sides, an even number.
        frames: Frames of a clip.

    Returns:
        True if it was rendered, False if it was there.

    Raises:
        ValueError: The folder holds something else, or a number does not fit.
    """
    root = Path(root).expanduser()
    if layout not in LAYOUTS:
        raise ValueError(f"unknown data.layout {layout!r}: valid: {', '.join(LAYOUTS)}")
    arguments = {"version": _VERSION, "layout": layout, "seed": seed, "train_per_class": train_per_class}
    arguments |= {"val_per_class": val_per_class, "size": size, "frames": frames}
    if min(train_per_class, val_per_class, size, frames) < 1 or size % 2:
        raise ValueError(f"the motion demo needs positive numbers and an even size, got {arguments}")

    def render(folder: Path) -> None:
        jobs = samples_of(train_per_class, val_per_class, len(CLASSES))
        # numbers that went on from class to class would tell the class
        numbers = np.random.default_rng(seed).permutation(len(jobs)).tolist()
        items = []
        for job, number in progress(zip(jobs, numbers, strict=True), "the motion demo", root):
            split, name = ("train", "val")[job[0]], CLASSES[job[1]]
            path = folder / _file(layout, split, name, number, frames)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, draw_clip(name, frames, size, np.random.default_rng([seed, *job])))
            items.append((split, job[1], number, path.relative_to(folder)))
        _annotate(folder, layout, items, frames)

    return render_once(root, _MARKER, arguments, "motion demo", render)


def _stem(place: int, frames: int) -> str:
    return f"motion{place:05d}_{0:06d}_{_seconds(frames):06d}"


def _seconds(frames: int) -> int:
    return -(-frames // _FPS)  # rounded up


def _file(layout: str, split: str, name: str, place: int, frames: int) -> Path:
    if layout == "ssv2":
        return Path("20bn-something-something-v2") / f"{place}.webm"
    folder = {"csv": Path(split), "folders": Path(split) / name.replace(" ", "_"), "list": Path("videos")}[layout]
    return folder / f"{_stem(place, frames)}.mp4"


def _annotate(root: Path, layout: str, items: list[tuple[str, int, int, Path]], frames: int) -> None:
    """What the layout has beside the videos."""
    for split in ("train", "val"):
        of_split = sorted((place, label, path) for name, label, place, path in items if name == split)
        if layout == "csv":
            with (root / f"{split}.csv").open("w", newline="") as lines:
                writer = csv.writer(lines)
                writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
                end = _seconds(frames)
                writer.writerows([CLASSES[label], f"motion{place:05d}", 0, end, split] for place, label, _ in of_split)
        elif layout == "list":
            (root / f"{split}.txt").write_text("".join(f"{path} {label}\n" for _, label, path in of_split))
        elif layout == "ssv2":
            long = {"train": "train", "val": "validation"}[split]
            entries = [
                {"id": str(place), "template": _template(label), "placeholders": ["something"]}
                | {"label": CLASSES[label] + " something"}
                for place, label, _ in of_split
            ]
            (root / f"something-something-v2-{long}.json").write_text(json.dumps(entries))
    if layout == "list":
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    if layout == "ssv2":
        labels = {_template(label).translate(str.maketrans("", "", "[]")): str(label) for label in range(len(CLASSES))}
        (root / "something-something-v2-labels.json").write_text(json.dumps(labels))


def _template(label: int) -> str:
    return f"{CLASSES[label].capitalize()} [something]"


class MotionDataModule(Rendered, VideoDataModule):
    """The ten motions of `render_motion`, rendered on first use and then read from their files.

    Args:
        root: The folder to render into.
        layout: `csv`, `folders` or `list` (Kinetics, H.264 in mp4), or `ssv2` (VP9 in webm).
        train_per_class: Training clips of each class.
        val_per_class: Validation clips of each class.
        render_seed: Seed of the clips.
        size: Pixels of a rendered clip, both sides.
        frames: Frames of a rendered clip.
        num_frames: Frames that the model sees; 1 = a single frame, which tells nothing.
        frame_stride: Distance of two of them.
        img_size: Pixels that the model sees; the whole picture is resized to them, nothing is cropped.
        test_clips: Clips of a video in test.
        test_crops: 1: there is nothing to crop.
        crop_pct: 1: the whole picture is evaluated.
        hflip: 0: left and right are classes.
        cache: Keep the decoded clips in memory (of the default numbers, 165 MB).
        kwargs: As for `VideoDataModule`.
    """

    marker, render = _MARKER, staticmethod(render_motion)

    def __init__(
        self,
        root: str = "demo_motion",
        layout: str = "csv",
        train_per_class: int = 300,
        val_per_class: int = 50,
        render_seed: int = 0,
        size: int = 32,
        frames: int = 16,
        num_frames: int = 16,
        frame_stride: int = 1,
        img_size: int | tuple[int, int] = 32,
        test_clips: int = 1,
        test_crops: int = 1,
        crop_pct: float = 1.0,
        hflip: float = 0.0,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        side = img_size if isinstance(img_size, int) else min(img_size)
        views = {"test_clips": test_clips, "test_crops": test_crops, "crop_pct": crop_pct, "hflip": hflip}
        if kwargs.get("scale") is None and kwargs.get("short_side") is None:
            kwargs["short_side"] = (side, side)
        clips = {"num_frames": num_frames, "frame_stride": frame_stride, "img_size": img_size, "cache": cache}
        super().__init__(root, **clips, **views, **kwargs)
        self.render_arguments = {"layout": layout, "train_per_class": train_per_class, "val_per_class": val_per_class}
        self.render_arguments |= {"seed": render_seed, "size": size, "frames": frames}

    @cached_property
    def _inner(self) -> VideoDataModule:
        """The DataModule of the layout: it finds the files."""
        if self.render_arguments["layout"] == "ssv2":
            return SSv2DataModule(str(self.root))
        return KineticsDataModule(str(self.root), layout=self.render_arguments["layout"])

    @property
    def classes(self) -> list[str]:
        """The ten motions."""
        return CLASSES

    def list_split(self, split: str) -> VideoList:
        """The videos of one split (called by `VideoDataModule`)."""
        if [name.lower().removesuffix(" something") for name in self._inner.classes] != CLASSES:
            raise ValueError(f"the classes of {str(self.root)!r} are not the ten motions: remove that folder")
        return self._inner.list_split(split)
