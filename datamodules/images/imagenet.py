"""ImageNet-1k: `train/` and `val/` by wnid, or a flat `val/` with the development kit's ground truth."""

import re
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.images.folder import EXTENSIONS, LabelledImages
from datamodules.images.names import imagenet_wnids

_GROUND_TRUTH = Path("data", "ILSVRC2012_validation_ground_truth.txt")
_META = Path("data", "meta.mat")


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet-1k from disk; class indices follow the 1000 sorted wnids whatever the order of the development kit.

    `val/` holds class folders like `train/`, or the 50,000 images as they come out of the archive; then the
    development kit's `data/` folder is looked for in `devkit`, in `root/ILSVRC2012_devkit_t12` and in `root`.

    Args:
        root: The folder that holds `train/` and `val/`.
        num_classes: 1000; `None` counts the class folders (a subset of ImageNet).
        devkit: Folder of the unpacked development kit, for a flat `val/`.
        kwargs: As for `ImageFolderDataModule`.

    Raises:
        ValueError, FileNotFoundError: One line that names the path or option, what was found and what to do.
    """

    def __init__(self, root: str, num_classes: int | None = 1000, devkit: str | None = None, **kwargs: Any) -> None:
        super().__init__(root=root, num_classes=num_classes, **kwargs)
        self.devkit = devkit

    def _known_classes(self) -> list[str] | None:
        return imagenet_wnids() if self._num_classes == 1000 else None

    @property
    def classes(self) -> list[str]:
        """Sorted wnids of the training split; the known 1000 where only a flat `val/` is there."""
        if not (self.root / self.train_split).is_dir() and self._flat_images(self.val_split):
            return imagenet_wnids()
        return super().classes

    def _flat_images(self, split: str) -> list[Path]:
        folder = self.root / split
        if not folder.is_dir():
            return []
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if any(entry.is_dir() for entry in entries):
            return []
        return sorted(entry for entry in entries if entry.name.lower().endswith(EXTENSIONS))

    def _read_split(self, split: str, training: bool = False) -> Dataset:
        images = [] if training else self._flat_images(split)
        if not images:
            return super()._read_split(split, training)
        wnids = read_devkit(self._find_devkit(split))
        index = {wnid: place for place, wnid in enumerate(self.classes)}
        samples = []
        for path in images:
            match = re.search(r"_(\d{8})$", path.stem)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(wnids):
                raise ValueError(
                    f"{str(path)!r} has no place among the {len(wnids)} lines of the ground truth; expected names from "
                    f"ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(wnids):08d}.JPEG"
                )
            if wnids[number - 1] not in index:
                raise ValueError(
                    f"{str(path)!r} belongs to {wnids[number - 1]}, which is no class folder of "
                    f"{str(self.root / self.train_split)!r}; the flat val/ and train/ must hold the same classes"
                )
            samples.append((str(path), index[wnids[number - 1]]))
        if len(samples) != len(wnids):
            raise ValueError(
                f"{str(self.root / split)!r} holds {len(samples)} images, but the ground truth has {len(wnids)} lines; "
                "unpack the validation archive again"
            )
        return LabelledImages(samples, self.pipeline(training).sample, self.skip_corrupt, self.excluded)

    def _find_devkit(self, split: str) -> Path:
        places = [Path(self.devkit).expanduser()] if self.devkit else [self.root / "ILSVRC2012_devkit_t12", self.root]
        for place in places:
            if (place / _GROUND_TRUTH).is_file() and (place / _META).is_file():
                return place
        raise FileNotFoundError(
            f"{str(self.root / split)!r} holds images and no class folders, and there is no {_GROUND_TRUTH} with "
            f"{_META} in {' or '.join(repr(str(place)) for place in places)}; set data.devkit to the unpacked "
            "development kit, or sort the images into one folder per wnid"
        )


def read_devkit(devkit: Path) -> list[str]:
    """The wnid of every validation image, in the order of their numbers.

    The ground truth gives one ILSVRC2012 id per line; `meta.mat` maps the ids, which are not in sorted order, to wnids.

    Args:
        devkit: The folder that holds `data/ILSVRC2012_validation_ground_truth.txt` and `data/meta.mat`.

    Raises:
        ValueError: Scipy, which reads `meta.mat`, is not installed, or an id has no wnid.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(
            f"reading {str(devkit / _META)!r} needs scipy: pip install scipy, or sort val/ into one folder per wnid"
        ) from None
    synsets = loadmat(devkit / _META, squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = [int(line) for line in (devkit / _GROUND_TRUTH).read_text().split()]
    unknown = sorted(set(ids) - set(wnids))
    if unknown:
        raise ValueError(f"the ground truth in {str(devkit)!r} names id {unknown[0]}, which {_META} does not have")
    return [wnids[number] for number in ids]
