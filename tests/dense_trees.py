"""Small data sets with dense labels, written to disk by the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))  # of class 0, 1, 2 and 3
CAMVID, PENNFUDAN = (Path(__file__).parents[2] / "shared/data" / name for name in ("camvid", "pennfudan"))


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    """A mask of rectangles of the classes 1 to 3 on class 0."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for label in (1, 2, 3):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = label
    return mask


def write_pair(image: Path, mask: Path, labels: np.ndarray) -> None:
    """An image whose colours say what the mask says."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(COLOURS, np.uint8)[labels % 4]).save(image)
    Image.fromarray(labels).save(mask)


def mask_tree(root: Path, train: int = 5, val: int = 3) -> Path:
    """The layout of `MaskFolderDataModule`: images of different sizes, four classes."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            labels = blocks(40 + 3 * number, 56 - 2 * number, number)
            name = f"{number}.png"
            write_pair(root / "images" / split / name, root / "masks" / split / name, labels)
    (root / "classes.txt").write_text("ground\nred\ngreen\nblue\n")
    return root


def objects(height: int = 48, width: int = 64) -> list[dict]:
    """Annotations of one image: a polygon, compressed and plain run lengths of a crowd."""
    disc = Image.new("L", (width, height))
    ImageDraw.Draw(disc).ellipse((30, 10, 49, 29), fill=1)
    encoded = coco.encode(np.asfortranarray(np.asarray(disc)))
    compressed = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    crowd = np.zeros((height, width), np.uint8)
    crowd[40:44, 10:30] = 1
    return [
        {"category_id": 7, "bbox": [4, 6, 12, 8], "segmentation": [[4, 6, 16, 6, 16, 14, 4, 14]], "area": 96},
        {"category_id": 3, "bbox": [30, 10, 20, 20], "segmentation": compressed, "area": int(np.asarray(disc).sum())},
        {
            **{"category_id": 7, "bbox": [10, 40, 20, 4], "iscrowd": 1, "area": 80},
            "segmentation": {"size": [height, width], "counts": run_lengths(crowd)},
        },
    ]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's plain run lengths, counted one pixel at a time."""
    runs, last = [0], 0
    for value in mask.T.flatten().tolist():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return runs


def coco_tree(root: Path, images: int = 4) -> Path:
    """COCO's layout; the last image of each split has no objects."""
    for split, first in (("train2017", 1), ("val2017", 101)):
        content: dict = {"images": [], "annotations": []}
        content["categories"] = [{"id": 7, "name": "block"}, {"id": 3, "name": "disc"}]
        (root / split).mkdir(parents=True)
        for number in range(first, first + images):
            rng = np.random.default_rng(number)
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / split / f"{number:012d}.jpg")
            content["images"].append({"id": number, "file_name": f"{number:012d}.jpg", "height": 48, "width": 64})
            for item in objects() if number < first + images - 1 else ():
                whole = {"iscrowd": 0, "id": len(content["annotations"]) + 1, "image_id": number} | item
                content["annotations"].append(whole)
        write_json(root / "annotations" / f"instances_{split}.json", content)
    return root


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path: Path, **changes: object) -> None:
    """Changes the first annotation of a file."""
    content = json.loads(path.read_text())
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))
