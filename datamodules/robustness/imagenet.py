"""ImageNet-C, -R, -A, -O, -V2 and -Sketch in their published layouts, tested together with the clean images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datamodules.images.folder import EXTENSIONS, LabelledImages, find_class_folders, is_image_in
from datamodules.images.imagenet import ImageNetDataModule
from datamodules.images.names import imagenet_wnids
from datamodules.images.transforms import eval_transform
from datamodules.robustness.corruptions import CORRUPTIONS, SEVERITIES
from datamodules.robustness.sets import ResizedTestSets, TestSet


class ImageNetRobustnessDataModule(ResizedTestSets, ImageNetDataModule):
    """Every robustness set of ImageNet that is on disk, in one test.

    The layouts are those of the archives: `CORRUPTION/SEVERITY/WNID/*.JPEG` for -C (also below the folders `noise`,
    `blur`, ... of its archives), `WNID/*` for -R, -A, -O and -Sketch, `0/ ... 999/` for -V2, whose folder names
    are class indices. -R, -A and -O hold 200 classes each; what a model says is restricted to those first. -O needs the
    clean validation images of its classes beside it.

    Images of -C were made by the resize and the crop to 224 pixels, so that they are read as they are (scaled as a
    whole where `img_size` is another); those of the other sets are resized and cropped as the clean images.

    Args:
        root: ImageNet; `val/` is tested as "imagenet" where it is there.
        imagenet_c: Folder of ImageNet-C.
        imagenet_r: Folder of ImageNet-R.
        imagenet_a: Folder of ImageNet-A.
        imagenet_o: Folder of ImageNet-O.
        imagenet_v2: Folder of one of the three ImageNet-V2 sets.
        imagenet_sketch: Folder of ImageNet-Sketch.
        severities: Severities of ImageNet-C to test.
        wnids: The model's classes in their order; None: the 1000 of ImageNet-1k.
        kwargs: As for `ImageNetDataModule`.

    Raises:
        ValueError, FileNotFoundError: One line, if a folder is not laid out as its archive is, or none of the sets is
            on disk.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        imagenet_c: str = "data/imagenet-c",
        imagenet_r: str = "data/imagenet-r",
        imagenet_a: str = "data/imagenet-a",
        imagenet_o: str = "data/imagenet-o",
        imagenet_v2: str = "data/imagenetv2-matched-frequency-format-val",
        imagenet_sketch: str = "data/imagenet-sketch",
        severities: tuple[int, ...] = SEVERITIES,
        wnids: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, num_classes=1000 if wnids is None else len(wnids), **kwargs)
        self._wnids = wnids
        self.severities = tuple(severities)
        places = {"c": imagenet_c, "r": imagenet_r, "a": imagenet_a, "o": imagenet_o}
        places |= {"v2": imagenet_v2, "sketch": imagenet_sketch}
        self.folders = {f"imagenet-{name}": Path(place).expanduser() for name, place in places.items()}

    @property
    def classes(self) -> list[str]:
        """The model's wnids."""
        return imagenet_wnids() if self._wnids is None else list(self._wnids)

    def _find_sets(self) -> list[tuple[TestSet, Dataset]]:
        sets = list(self._sets_on_disk())
        if not sets:
            raise FileNotFoundError(
                "none of the robustness sets is on disk: looked for "
                + ", ".join(str(folder) for folder in self.folders.values())
                + f" and {self.root / self.val_split}; set data.imagenet_c and so on, or data.root"
            )
        return sets

    def _sets_on_disk(self) -> Iterator[tuple[TestSet, Dataset]]:
        clean = self._clean()
        if clean is not None:
            yield TestSet("imagenet"), clean
        folder = self.folders["imagenet-c"]
        if folder.is_dir():
            yield from self._corrupted(folder)
        for name in ("imagenet-v2", "imagenet-sketch", "imagenet-r", "imagenet-a"):
            if self.folders[name].is_dir():
                data, classes = self._tree(self.folders[name], by_number=name == "imagenet-v2")
                yield TestSet(name, classes=classes if name in ("imagenet-r", "imagenet-a") else None), data
        folder = self.folders["imagenet-o"]
        if folder.is_dir():
            data, classes = self._tree(folder)
            if clean is None:
                raise FileNotFoundError(
                    f"{str(folder)!r} needs the clean validation images beside it: no folder "
                    f"{str(self.root / self.val_split)!r}; set data.root to ImageNet"
                )
            kept = [sample for sample in clean.samples if sample[1] in set(classes)]
            yield TestSet("imagenet-o", classes=classes, role="in"), self._images(kept)
            yield TestSet("imagenet-o", classes=classes, role="out"), data

    def _clean(self) -> Dataset | None:
        if not (self.root / self.val_split).is_dir():
            return None
        if self._flat_images(self.val_split):
            return self._read_split(self.val_split)
        return self._tree(self.root / self.val_split)[0]

    def _corrupted(self, folder: Path) -> Iterator[tuple[TestSet, Dataset]]:
        places = {path.name: path for path in [*folder.glob("*/*"), *folder.iterdir()] if path.is_dir()}
        present = [name for name in CORRUPTIONS if name in places]  # not the 4 extra ones, which are for tuning
        if not present:
            raise ValueError(
                f"no corruption in {str(folder)!r}: expected gaussian_noise/1/WNID/*.JPEG and so on (data.imagenet_c)"
            )
        for name in present:
            for severity in self.severities:
                if not (places[name] / str(severity)).is_dir():
                    raise FileNotFoundError(
                        f"no severity {severity} in {str(places[name])!r}: unpack the archive again, or leave it out "
                        "of data.severities"
                    )
                data = self._tree(places[name] / str(severity))[0]
                data.transform = eval_transform(self.img_size, self.options | {"crop_pct": 1.0}).resize
                yield TestSet("imagenet-c", name, severity), data

    def _tree(self, folder: Path, by_number: bool = False) -> tuple[LabelledImages, tuple[int, ...]]:
        """The images of class folders, and the indices of the classes that are there."""
        index = {str(i) if by_number else wnid: i for i, wnid in enumerate(self.classes)}
        names, is_image = find_class_folders(folder), is_image_in(folder)
        if unknown := [name for name in names if name not in index]:
            what = f"a number from 0 to {len(index) - 1}" if by_number else "a class of the model"
            raise ValueError(
                f"the folder {unknown[0]!r} in {str(folder)!r} is not {what} ({len(unknown)} such folders)"
            )
        samples = [
            (str(file), index[name])
            for name in names
            for file in sorted((folder / name).rglob("*"))
            if is_image(str(file))
        ]
        if not samples:
            raise ValueError(f"no images below {str(folder)!r}: expected {' '.join(EXTENSIONS)} in its class folders")
        return self._images(samples), tuple(sorted(index[name] for name in names))

    def _images(self, samples: list[tuple[str, int]]) -> LabelledImages:
        return LabelledImages(samples, self.pipeline(False).sample, self.skip_corrupt, self.excluded)
