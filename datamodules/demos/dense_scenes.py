"""Demo data for segmentation and detection: rendered scenes with exact masks and boxes, in both layouts at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from datamodules.demos.rendering import Rendered, progress, render_once
from datamodules.demos.scene_language import SHAPES, draw_scene
from datamodules.demos.scenes import paint_scene
from datamodules.dense.coco_instances import COCOInstancesDataModule
from datamodules.dense.index import Category
from datamodules.dense.mask_folder import MaskFolderDataModule
from datamodules.dense.masks import palette_of

_MARKER = "dense_scenes.json"
_VERSION = 1  # of drawing and files; raise it when either changes
_CLASSES = ("background", *SHAPES)


def render_dense_scenes(
    root: str | Path, seed: int = 0, train_images: int = 4000, val_images: int = 500, size: int = 96
) -> bool:
    """Writes scenes of two to four objects, with a mask and a box of each.

    `images/SPLIT/*.jpg`, `masks/SPLIT/*.png` and `classes.txt` are the layout of `MaskFolderDataModule` (background and
    three shapes), `annotations/instances_SPLIT.json` is COCO's (three shapes, compressed run lengths); a box is the
    bounds of its mask. The same arguments give the same bytes. Nothing is written where the same data set already lies;
    an interrupted run leaves no half of one.

    Args:
        root: Folder to make.
        seed: Of every scene.
        train_images: Scenes to train on.
        val_images: Other scenes.
        size: Pixels, both sides.

    Returns:
        True if it was rendered, False if it was there.

    Raises:
        ValueError: If the folder holds something else, or a number is too small.
    """
    root = Path(root).expanduser()
    arguments = {"version": _VERSION, "seed": seed, "train_images": train_images, "val_images": val_images}
    arguments["size"] = size
    if min(train_images, val_images) < 1 or size < 32:
        raise ValueError(f"the scenes need an image of each split and 32 pixels at least, got {arguments}")

    def render(folder: Path) -> None:
        (folder / "annotations").mkdir()
        (folder / "classes.txt").write_text("\n".join(_CLASSES) + "\n", encoding="utf-8")
        for split, (name, count) in enumerate((("train", train_images), ("val", val_images))):
            for kind in ("images", "masks"):
                (folder / kind / name).mkdir(parents=True)
            content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
            content["categories"] = [{"id": label, "name": shape} for label, shape in enumerate(SHAPES, 1)]
            for number in progress(range(count), name, root):
                rng = np.random.default_rng([seed, split, number])
                _write(folder, name, number + 1 + split * train_images, size, rng, content)
            (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))

    return render_once(root, _MARKER, arguments, "scenes", render)


def _write(
    folder: Path, split: str, image_id: int, size: int, rng: np.random.Generator, content: dict[str, list[Any]]
) -> None:
    """One scene: its picture, its mask, and its entries in the JSON."""
    scene, _ = draw_scene(size, rng)
    picture, masks = paint_scene(scene, rng)
    picture.save(folder / "images" / split / f"{image_id:06d}.jpg", quality=92, subsampling=0)
    content["images"].append({"id": image_id, "file_name": f"{image_id:06d}.jpg", "height": size, "width": size})
    labels = np.zeros((size, size), np.uint8)
    for item, mask in zip(scene["objects"], masks, strict=True):
        category = SHAPES.index(item["shape"]) + 1
        labels[mask] = category
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        entry = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
        entry |= {"bbox": coco.toBbox(encoded).tolist(), "area": int(mask.sum())}
        entry["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        content["annotations"].append(entry)
    Image.fromarray(labels).save(folder / "masks" / split / f"{image_id:06d}.png")


class _DenseScenes(Rendered):
    """Renders scenes with masks and boxes on first use; for multiple inheritance.

    Args:
        root: The folder to render into; one serves both DataModules.
        train_images: Scenes to train on.
        val_images: Scenes to validate on.
        render_seed: Seed of the scenes.
        size: Pixels of a rendered picture, both sides.
        img_size: Pixels of the crop in training.
        batch_size: Images per device in training.
        val_batch_size: Images per device in evaluation; all have one size.
        scale: Least and greatest factor of the random scale in training.
        kwargs: As for the DataModule that reads the layout.
    """

    marker, render = _MARKER, staticmethod(render_dense_scenes)

    def __init__(
        self,
        root: str = "demo_dense",
        train_images: int = 4000,
        val_images: int = 500,
        render_seed: int = 0,
        size: int = 96,
        img_size: int | tuple[int, int] = 96,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        scale: tuple[float, float] = (0.8, 1.25),
        **kwargs: Any,
    ) -> None:
        sizes = {"img_size": img_size, "batch_size": batch_size, "val_batch_size": val_batch_size, "scale": scale}
        super().__init__(root=root, **sizes, **kwargs)
        self.render_arguments = {"train_images": train_images, "val_images": val_images, "size": size}
        self.render_arguments["seed"] = render_seed


class DenseScenesDataModule(_DenseScenes, MaskFolderDataModule):
    """The masks of `render_dense_scenes`, rendered on first use: four classes, of which 0 is the background."""

    @property
    def class_names(self) -> list[str]:
        """Background and three shapes."""
        return list(_CLASSES)

    def _known_palette(self) -> list[tuple[int, int, int]]:
        return [(0, 0, 0), *palette_of(len(SHAPES))]


class DenseScenesInstancesDataModule(_DenseScenes, COCOInstancesDataModule):
    """The objects of `render_dense_scenes`, rendered on first use: boxes and masks of three classes.

    Args:
        root: The folder to render into.
        train_split: Name of the training split.
        val_split: Name of the validation split.
        kwargs: As for `DenseScenesDataModule` and `COCOInstancesDataModule`.
    """

    def __init__(
        self, root: str = "demo_dense", train_split: str = "train", val_split: str = "val", **kwargs: Any
    ) -> None:
        super().__init__(root, train_split=train_split, val_split=val_split, **kwargs)

    @property
    def categories(self) -> list[Category]:
        """Three shapes."""
        return [Category(label, shape) for label, shape in enumerate(SHAPES, 1)]
