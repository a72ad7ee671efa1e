"""Demo data for captioning: rendered scenes in COCO's layout, whose captions can be checked against the scene."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.captions.coco import COCOCaptionsDataModule
from datamodules.demos.rendering import OVERSAMPLE, Rendered, coverage, draw_outline, progress, render_once
from datamodules.demos.scene_language import check_caption, describe, draw_scene

_MARKER = "scenes.json"
_VERSION = 3  # of drawing and language; raise it when either changes
_RGB = {
    "red": (215, 45, 40),
    "green": (45, 170, 60),
    "blue": (50, 95, 225),
    "yellow": (240, 210, 45),
    "purple": (160, 65, 185),
    "white": (240, 240, 240),
}


def _turned(corners: int, radii: tuple[float, ...], start: float) -> list[tuple[float, float]]:
    angles = [start + 2 * math.pi * i / corners for i in range(corners)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


_OUTLINES = {  # within a circle of radius 1, y downwards
    "circle": _turned(40, (0.9,), 0.0),
    "square": _turned(4, (1.1,), math.pi / 4),
    "triangle": _turned(3, (1.15,), -math.pi / 2),
}


def render_scene(scene: dict[str, Any], rng: np.random.Generator) -> Image.Image:
    """The picture of a scene: its objects in uneven colours on a dark, cloudy ground.

    Args:
        scene: From `scene_language.draw_scene`.
        rng: The only source of chance: of ground, shades and noise, not of the objects.
    """
    return paint_scene(scene, rng)[0]


def paint_scene(scene: dict[str, Any], rng: np.random.Generator) -> tuple[Image.Image, list[np.ndarray]]:
    """As `render_scene`, with the mask of each object.

    Args:
        scene: From `scene_language.draw_scene`; objects do not overlap.
        rng: As for `render_scene`.

    Returns:
        The picture, and for each object a bool `(size, size)`: the pixels that it covers by half or more.
    """
    size = scene["size"]
    clouds = Image.fromarray(rng.integers(30, 95, (5, 5, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    picture = np.asarray(clouds, np.float32)  # (size, size, 3)
    masks = []
    for item in scene["objects"]:
        tilt = rng.uniform(-0.12, 0.12)  # radians, 7 degrees either way
        turn = item["radius"] * np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        points = (np.asarray(_OUTLINES[item["shape"]]) @ turn + (item["x"], item["y"])) * OVERSAMPLE
        cover = coverage(draw_outline(size * OVERSAMPLE, [points]))  # (size, size, 1)
        masks.append(cover[..., 0] >= 0.5)
        shade = np.asarray(_RGB[item["colour"]]) * rng.uniform(0.85, 1.05)
        picture = picture * (1 - cover) + shade * cover
    picture = picture + rng.normal(0, 4, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)), masks


def render_scenes(
    root: str | Path,
    seed: int = 0,
    train_images: int = 6000,
    val_images: int = 500,
    size: int = 64,
    max_objects: int = 4,
    wordings: int = 5,
) -> bool:
    """Writes `annotations/captions_{train,val}2017.json` and the images beside them.

    The same arguments give the same bytes. Each entry of `images` has its `scene`. Nothing is written where the
    same data set already lies; an interrupted run leaves no half of one.

    Args:
        root: Folder to make.
        seed: Seed of the scenes.
        train_images: Scenes to train on.
        val_images: Other scenes.
        size: Pixels, both sides.
        max_objects: Objects in a scene at most, 2 to 4; there are two at least.
        wordings: Captions of a scene, 1 to 5, the first ones of `scene_language.describe`.

    Returns:
        True if it was rendered, False if it was there.

    Raises:
        ValueError: If the folder holds something else, or a number is too small.
    """
    root = Path(root).expanduser()
    arguments = {"version": _VERSION, "seed": seed, "train_images": train_images, "val_images": val_images}
    arguments["size"] = size
    # Folders that are older than these arguments do not name them.
    arguments |= {"max_objects": max_objects} if max_objects != 4 else {}
    arguments |= {"wordings": wordings} if wordings != 5 else {}
    if min(train_images, val_images) < 1 or size < 32 or not 2 <= max_objects <= 4 or not 1 <= wordings <= 5:
        raise ValueError(
            "the scenes need an image of each split, 32 pixels at least, max_objects from 2 to 4 and wordings from 1 "
            f"to 5, got {arguments}"
        )

    def render(folder: Path) -> None:
        (folder / "annotations").mkdir()
        for split, (name, count) in enumerate((("train2017", train_images), ("val2017", val_images))):
            (folder / name).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number in progress(range(count), name, root):
                rng = np.random.default_rng([seed, split, number])
                scene, (first, second, relation) = draw_scene(size, rng, max_objects)
                image_id = number + 1 + split * train_images
                file_name = f"{image_id:012d}.jpg"
                render_scene(scene, rng).save(folder / name / file_name, quality=92, subsampling=0)
                images.append({"id": image_id, "file_name": file_name, "height": size, "width": size, "scene": scene})
                for caption in describe(scene, first, second, relation)[:wordings]:
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption})
            file = folder / "annotations" / f"captions_{name}.json"
            file.write_text(json.dumps({"images": images, "annotations": annotations}))

    return render_once(root, _MARKER, arguments, "scenes", render)


def load_scenes(root: str | Path, split: str = "val") -> dict[int, dict[str, Any]]:
    """The scenes of a split by image number.

    Args:
        root: The folder of `render_scenes`.
        split: `train` or `val`.

    Raises:
        FileNotFoundError: If there are none.
    """
    file = Path(root).expanduser() / "annotations" / f"captions_{split}2017.json"
    if not file.is_file():
        raise FileNotFoundError(f"no scenes {str(file)!r}: render them first, as a fit on ScenesDataModule does")
    return {image["id"]: image["scene"] for image in json.loads(file.read_text())["images"]}


class ScenesDataModule(Rendered, COCOCaptionsDataModule):
    """The scenes of `render_scenes`, rendered on first use and then read from disk.

    Args:
        root: The folder to render into.
        train_images: Scenes to train on.
        val_images: Scenes to validate on.
        render_seed: Seed of the scenes.
        size: Pixels of a rendered picture, both sides.
        max_objects: Objects in a scene at most, 2 to 4.
        wordings: Captions of a scene, 1 to 5.
        img_size: Pixels the model sees.
        crop_padding: Pixels to shift by in training; a smaller part of the picture might lack what its captions name.
        tokenizer_type: `bpe` makes a token of each of the few words; `unigram` cuts them up.
        context_length: Tokens of a caption at most.
        kwargs: As for `COCOCaptionsDataModule`.
    """

    marker, render = _MARKER, staticmethod(render_scenes)

    def __init__(
        self,
        root: str = "demo_scenes",
        train_images: int = 6000,
        val_images: int = 500,
        render_seed: int = 0,
        size: int = 64,
        max_objects: int = 4,
        wordings: int = 5,
        img_size: int | tuple[int, int] = 64,
        crop_padding: int | None = 2,
        tokenizer_type: str = "bpe",
        context_length: int = 32,
        **kwargs: Any,
    ) -> None:
        own = {"img_size": img_size, "crop_padding": crop_padding, "tokenizer_type": tokenizer_type}
        super().__init__(root, context_length=context_length, **own, **kwargs)
        self.render_arguments = {"train_images": train_images, "val_images": val_images, "size": size}
        self.render_arguments |= {"seed": render_seed, "max_objects": max_objects, "wordings": wordings}
        self._scenes: dict[int, dict[str, Any]] | None = None

    def check(self, image_id: int, caption: str) -> str:
        """Whether a caption is true of an image, as `check_caption` says: "" or why not.

        Args:
            image_id: Number of an image of either split.
            caption: A generated caption.

        Raises:
            ValueError: If no image has that number.
        """
        if self._scenes is None:
            self._scenes = load_scenes(self.root, "train") | load_scenes(self.root, "val")
        if int(image_id) not in self._scenes:
            raise ValueError(f"no scene has the number {int(image_id)}: there are {len(self._scenes)}, from 1 on")
        return check_caption(caption, self._scenes[int(image_id)])
