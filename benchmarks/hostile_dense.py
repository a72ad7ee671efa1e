"""Hostile files of dense labels for `hostile.py`: COCO's JSON, masks, lists, YOLO's texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_files import attempt, case
from hostile_pictures import png

_ENDLESS = "[" * 100_000


def _data(kind: str, **options: Any) -> None:
    """Reads every training sample of a DataModule in this folder."""
    import datamodules

    data = getattr(datamodules, kind)(root=".", batch_size=1, num_workers=0, **options)
    list(data.dataset("train"))


def _picture(*paths: str) -> None:
    from PIL import Image

    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)


def instances(name: str, text: str | None = None, file_name: Any = "1.jpg", size: int = 8, **changes: Any) -> None:
    """COCO's instances with one thing changed."""

    @case(f"dense instances {name}")
    def make() -> Callable[[], str]:
        _picture("train2017/1.jpg")
        item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
        content = {"images": [{"id": 1, "file_name": file_name, "height": size, "width": size}]}
        content |= {"annotations": [item | changes], "categories": [{"id": 1, "name": "\x1b[2J"}]}
        Path("annotations").mkdir()
        Path("annotations/instances_train2017.json").write_text(json.dumps(content) if text is None else text)
        return attempt(lambda: _data("COCOInstancesDataModule"))


def _runs(counts: Any, size: int = 8) -> dict[str, Any]:
    return {"segmentation": {"size": [size, size], "counts": counts}}


instances("absolute", file_name="/etc/passwd")
instances("up", file_name="../victim")
instances("address", file_name="http://127.0.0.1:9/x")
instances("nested", _ENDLESS)
instances("huge image", size=10**9)
instances("huge runs", **_runs([10**15, 10**15]))
instances("runs of another size", **_runs([10**10], 10**5))
instances("endless number", **_runs("o" * 10**6))
instances("runs that do not fill", **_runs("zzzzz"))
instances("long polygon", segmentation=[[value for _ in range(10**5) for value in (-9e5, -9e5, 9e5, 9e5)]])
instances("polygon of 10^300", segmentation=[[1, 1, 1e300, 1, 1e300, 1e300]])
instances("polygon of texts", segmentation=[["pipe:touch ran"] * 6])


def mask(name: str, content: Callable[[], bytes], classes: str = "a") -> None:
    """A mask of `MaskFolderDataModule`."""

    @case(f"dense mask {name}")
    def make() -> Callable[[], str]:
        _picture("images/train/1.png", "masks/train/1.png")
        Path("masks/train/1.png").write_bytes(content())
        Path("classes.txt").write_text(classes)
        return attempt(lambda: _data("MaskFolderDataModule"))


mask("of 10^9 pixels", lambda: png(40000, 25000))
mask("of 2^62 pixels", lambda: png(2**31 - 1, 2**31 - 1))
mask("eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\n%%EOF\n")
mask("names", lambda: b"", classes="\x1b[2J\n" * 2)


def yolo(name: str, names: str, text: str = "0 0.5 0.5 1 1") -> None:
    """YOLO's files."""

    @case(f"dense yolo {name}")
    def make() -> Callable[[], str]:
        _picture("images/train/1.jpg")
        Path("labels/train").mkdir(parents=True)
        Path("labels/train/1.txt").write_text(text)
        Path("data.yaml").write_text(names)
        return attempt(lambda: _data("YOLODataModule", masks=True))


_LAUGHS = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
yolo("tag", "names: !!python/object/apply:os.system ['touch ran']")
yolo("laughs", f"a: &a [x]\n{_LAUGHS}names: *i")
yolo("nested", f"names: {_ENDLESS}")
yolo("numbers", "names: [a]", "0 1e308 1e308 1e308 1e308\nnan nan nan nan nan\n0 0 0 inf inf 1 1")


@case("dense voc list")
def _voc() -> Callable[[], str]:
    Path("ImageSets/Segmentation").mkdir(parents=True)
    Path("ImageSets/Segmentation/trainaug.txt").write_text("../../victim ../../victim\n")
    return attempt(lambda: _data("VOCSegmentationDataModule"))


@case("dense panoptic")
def _panoptic() -> Callable[[], str]:
    Path("annotations").mkdir()
    content = {"images": [{"id": 1, "file_name": "/etc/passwd"}], "categories": [{"id": 1, "name": "a"}]}
    content["annotations"] = [{"image_id": 1, "file_name": "../victim", "segments_info": []}]
    Path("annotations/panoptic_train2017.json").write_text(json.dumps(content))
    return attempt(lambda: _data("COCOPanopticDataModule"))
