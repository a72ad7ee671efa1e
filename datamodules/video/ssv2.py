"""Something-Something v2: json annotations beside a folder of webm files."""

import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.loading.files import what_is_there
from datamodules.loading.untrusted import parse_json
from datamodules.video.datamodule import VideoDataModule
from datamodules.video.listing import VideoList, by_stem, first_there

_LONG = "something-something-v2-"


def template_key(template: str) -> str:
    """The key in `labels.json` of a template: `Putting [something] on [something]` without its brackets."""
    return re.sub(r"[\[\]]", "", template)


class SSv2DataModule(VideoDataModule):
    """Something-Something v2: `something-something-v2-{train,validation,test,labels}.json`, or `train.json`, ....

    The json files lie in `root`, `root/labels` or `root/annotations`, the videos anywhere below `video_dir`,
    named `{id}.webm` (or `.mp4`). The class order is that of `labels.json`. The test videos have no labels:
    predict on them with `predict_split: test`.

    Args:
        root: The folder of the data set.
        video_dir: The folder of the videos; `None` = `20bn-something-something-v2` or `videos` where there is
            one, else `root`.
        annotations: Folder with the json files, where it is not `root`.
        num_frames: T, frames of a clip.
        frame_stride: Distance of two frames of a clip; the videos have 12 frames per second.
        test_clips: Clips of a video in test.
        test_crops: Crops of a clip in test, 1 or 3.
        hflip: Probability of a horizontal flip; left and right are labels here, so 0.
        val_split: Name of the validation videos.
        kwargs: As for `VideoDataModule`.
    """

    def __init__(
        self,
        root: str,
        video_dir: str | None = None,
        annotations: str | None = None,
        num_frames: int = 32,
        frame_stride: int = 1,
        test_clips: int = 1,
        test_crops: int = 3,
        hflip: float = 0.0,
        val_split: str = "validation",
        **kwargs: Any,
    ) -> None:
        clips = {"num_frames": num_frames, "frame_stride": frame_stride, "hflip": hflip, "val_split": val_split}
        super().__init__(root, test_clips=test_clips, test_crops=test_crops, **clips, **kwargs)
        self._annotations = Path(annotations).expanduser() if annotations else self.root
        self._video_dir = Path(video_dir).expanduser() if video_dir else None
        if hflip > 0:
            warnings.warn(
                f"data.hflip={hflip} on Something-Something: left and right are labels there, and a flipped video has "
                "the wrong one; set data.hflip=0",
                stacklevel=2,
            )

    def _json(self, name: str) -> Any:
        names = {"validation": ("validation", "val"), "val": ("val", "validation")}.get(name, (name,))
        file = first_there(self._annotations, [f"{start}{each}.json" for each in names for start in (_LONG, "")])
        if file is None:
            raise FileNotFoundError(
                f"no {_LONG}{name}.json and no {name}.json in {str(self._annotations)!r}: "
                f"{what_is_there(self._annotations)}; name their folder with data.annotations"
            )
        try:
            return parse_json(file.read_bytes(), "it")
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is not JSON: {error}") from None

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {template: int(number) for template, number in self._json("labels").items()}

    @property
    def classes(self) -> list[str]:
        """Templates without brackets, in the order of `labels.json`."""
        names = sorted(self._labels, key=self._labels.get)
        if [self._labels[name] for name in names] != list(range(len(names))):
            raise ValueError(f"labels.json in {str(self._annotations)!r} does not number its classes 0, 1, 2, ...")
        return names

    @cached_property
    def _files(self) -> dict[str, str]:
        places = [self.root / "20bn-something-something-v2", self.root / "videos"]
        return by_stem(self._video_dir or next((place for place in places if place.is_dir()), self.root))

    def list_split(self, split: str) -> VideoList:
        """The videos of one split (called by `VideoDataModule`)."""
        videos = VideoList([], [])
        for item in self._json(split):
            path = self._files.get(str(item["id"]))
            if path is None:
                videos.missing.append(str((self._video_dir or self.root) / f"{item['id']}.webm"))
                continue
            videos.paths.append(path)
            videos.targets.append(self._target(item))
        return videos

    def _target(self, item: dict[str, Any]) -> int | None:
        if "template" not in item:  # of the test set
            return None
        key = template_key(item["template"])
        if key not in self._labels:
            raise ValueError(
                f"the template {item['template']!r} of video {item['id']} is none of the {len(self._labels)} classes "
                "of labels.json; both must come from the same version"
            )
        return self._labels[key]
