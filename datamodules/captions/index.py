"""Images and their captions on disk: COCO's own annotation files, and Karpathy's splits of COCO and Flickr.

A layout is told by its files below the root:

- `2017`, `2014`: `annotations/captions_train2017.json` beside `train2017/`, and likewise `val`;
- `karpathy`: `dataset_coco.json` beside COCO's 2014 folders, or `dataset_flickr8k.json` and
  `dataset_flickr30k.json` beside one folder of images. Its training images are those of `train` and `restval`.
"""

from pathlib import Path
from typing import Any, NamedTuple

from datamodules.loading.annotations import check_files, read_json
from datamodules.loading.files import what_is_there
from datamodules.loading.untrusted import inside

LAYOUTS = ("auto", "karpathy", "2017", "2014")
_KARPATHY = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
# Where the images of Flickr are found; COCO's Karpathy file names its folders itself.
_FLICKR_FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "")


class Captioned(NamedTuple):
    """One image.

    Attributes:
        path: Of the file.
        image_id: A number that no other image of the split has.
        captions: At least one.
    """

    path: str
    image_id: int
    captions: list[str]


def find_layout(root: Path, layout: str) -> str:
    """The layout below a root, where `auto` leaves it open: Karpathy's split before 2017 before 2014.

    Args:
        root: The folder of the data.
        layout: One of `LAYOUTS`, or the path of an annotation file, which is returned as it is.

    Raises:
        ValueError: If the layout is unknown.
        FileNotFoundError: If none is there.
    """
    if layout.endswith(".json"):
        return layout
    if layout not in LAYOUTS:
        raise ValueError(f"unknown data.annotations {layout!r}: choose from {', '.join(LAYOUTS)}, or name a .json file")
    if layout != "auto":
        return layout
    if _karpathy_file(root):
        return "karpathy"
    for year in ("2017", "2014"):
        if any((root / "annotations" / f"captions_{split}{year}.json").is_file() for split in ("train", "val")):
            return year
    raise FileNotFoundError(
        f"no captions in {str(root)!r}: {what_is_there(root)}; expected annotations/captions_train2017.json (or 2014) "
        f"or {' or '.join(_KARPATHY)}"
    )


def read_split(root: Path, layout: str, split: str) -> list[Captioned]:
    """The images of one split, in the order of the annotation file.

    Args:
        root: The folder of the data.
        layout: From `find_layout`; of a file that is given, the split names the part (Karpathy's) or nothing (COCO's).
        split: `train`, `val` or `test`.

    Raises:
        FileNotFoundError: If the annotation file or an image is missing.
        ValueError: If the annotations are malformed, or an image has no caption.
    """
    file = annotation_file(root, layout, split)
    images = _parse(file, root, split)
    if not images:
        raise ValueError(f"{str(file)!r} has no images of the split {split!r}: name another with data.{split}_split")
    _check_captions(images, file)
    check_files([image.path for image in images], file)
    return images


def read_captions(file: Path) -> list[str]:
    """The captions of a file alone: of COCO's, of the training images of Karpathy's, or the lines of a text.

    Args:
        file: A `.json` file, or any text in UTF-8.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is malformed.
    """
    if file.suffix == ".json":
        return [text for image in _parse(file, file.parent, "train") for text in image.captions]
    if not file.is_file():
        raise FileNotFoundError(f"no captions {str(file)!r}: {what_is_there(file.parent)}")
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is no text in UTF-8: {error}") from error


def annotation_file(root: Path, layout: str, split: str) -> Path:
    """The file that has the captions of a split, whether it is there or not.

    Args:
        root: The folder of the data.
        layout: From `find_layout`.
        split: `train`, `val` or `test`.
    """
    if layout.endswith(".json"):
        path = Path(layout).expanduser()
        return path if path.is_absolute() or path.is_file() else root / path
    if layout == "karpathy":
        return _karpathy_file(root) or root / _KARPATHY[0]
    return root / "annotations" / f"captions_{split}{layout}.json"


def _karpathy_file(root: Path) -> Path | None:
    places = [root / folder / name for name in _KARPATHY for folder in ("", "annotations", "karpathy")]
    return next((place for place in places if place.is_file()), None)


def _parse(file: Path, root: Path, split: str) -> list[Captioned]:
    data = read_json(file)
    try:
        if isinstance(data, dict) and "annotations" in data:
            return _coco(data, file, root)
        if isinstance(data, dict):
            return _karpathy(data, file, root, split)
        raise TypeError(f"a mapping (found a {type(data).__name__})")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(file)!r} is no caption file: {error} is missing or of another kind; expected COCO's images and "
            "annotations (id, file_name; image_id, caption) or Karpathy's images (filename, split, sentences)"
        ) from error


def _coco(data: dict[str, Any], file: Path, root: Path) -> list[Captioned]:
    folder = root / file.stem.removeprefix("captions_")
    if not folder.is_dir():
        folder = next((root / name for name in ("images", file.stem) if (root / name).is_dir()), folder)
    numbers = [image["id"] for image in data["images"]]
    for number in numbers:
        if not isinstance(number, int):
            raise TypeError(f"a whole number as id (found {number!r})")
    captions: dict[int, list[str]] = {number: [] for number in numbers}
    if len(captions) < len(data["images"]):
        raise ValueError(f"{str(file)!r} gives one id to two images: every image needs an id of its own")
    for item in data["annotations"]:
        if item["image_id"] not in captions:
            raise ValueError(f"{str(file)!r} has a caption of image {item['image_id']}, which is not among its images")
        if text := " ".join(item["caption"].split()):
            captions[item["image_id"]].append(text)
    return [
        Captioned(str(folder / inside(image["file_name"], repr(str(file)))), number, captions[number])
        for number, image in zip(numbers, data["images"], strict=True)
    ]


def _karpathy(data: dict[str, Any], file: Path, root: Path, split: str) -> list[Captioned]:
    wanted = ("train", "restval") if split == "train" else (split,)
    images = [image for image in data["images"] if image["split"] in wanted]
    folder = root
    if images and not images[0].get("filepath"):
        names = [name for name in _FLICKR_FOLDERS if (root / name / images[0]["filename"]).is_file()]
        folder = root / (names or _FLICKR_FOLDERS)[0]
    return [
        Captioned(
            str(folder / inside(str(Path(image.get("filepath", "")) / image["filename"]), repr(str(file)))),
            image.get("cocoid", image["imgid"]),
            [text for sentence in image["sentences"] if (text := " ".join(sentence["raw"].split()))],
        )
        for image in images
    ]


def _check_captions(found: list[Captioned], file: Path) -> None:
    without = [image for image in found if not image.captions]
    if without:
        raise ValueError(
            f"{len(without)} of {len(found)} images in {str(file)!r} have no caption, such as {without[0].image_id} "
            f"({Path(without[0].path).name}): add captions, or remove the images from the file"
        )
