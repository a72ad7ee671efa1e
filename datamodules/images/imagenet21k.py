"""ImageNet-21k, whole or as the pruned 21k-P: one folder per wnid, classes by timm's lists."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets.folder import make_dataset

from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.images.folder import LabelledImages, find_class_folders, is_image_in
from datamodules.loading.files import what_is_there

# What timm calls the list of each subset; the number of its classes is in the name's comment.
_LISTS = {
    "full": "imagenet22k_synsets.txt",  # 21,841: the fall 2011 release
    "p": "imagenet21k_miil_synsets.txt",  # 11,221: 21k-P of the fall 2011 release
    "p_winter21": "imagenet21k_miil_w21_synsets.txt",  # 10,450: 21k-P of the winter 2021 release
}
SUBSETS = tuple(_LISTS)


@cache
def wnids_of(subset: str) -> list[str]:
    """The sorted wnids of one of `SUBSETS`: the class order."""
    return sorted(files("timm").joinpath("data", "_info", _LISTS[subset]).read_text().split())


class ImageNet21kDataModule(ImageFolderDataModule):
    """ImageNet-21k from disk: `train/WNID/*`, and `val/WNID/*` as 21k-P has it.

    The class indices are those of the subset's list, whatever folders there are. Folders of the other classes of
    ImageNet-21k are left out, so that 21k-P can be read from the whole tree. Classes without a validation image are no
    error; without a `val/` set `val_fraction`.

    Args:
        root: The folder that holds `train/`.
        subset: `full` (21,841 classes), `p` (21k-P, 11,221) or `p_winter21` (21k-P of the winter 2021 release,
            10,450).
        kwargs: As for `ImageFolderDataModule`, without `cache` and `num_classes`.

    Raises:
        ValueError, FileNotFoundError: One line, for classes of the subset without a training folder, folders that are
            no classes of ImageNet-21k, and empty folders.
    """

    def __init__(self, root: str, subset: str = "full", **kwargs: Any) -> None:
        if subset not in SUBSETS:
            raise ValueError(f"unknown data.subset {subset!r}: valid: {', '.join(SUBSETS)}")
        for name in ("cache", "num_classes"):
            if kwargs.pop(name, None):
                raise ValueError(f"data.{name} is not for ImageNet-21k: leave it out")
        super().__init__(root=root, num_classes=len(wnids_of(subset)), **kwargs)
        self.subset = subset

    @property
    def classes(self) -> list[str]:
        """The subset's wnids, sorted."""
        return wnids_of(self.subset)

    def _known_classes(self) -> list[str]:
        return self.classes

    def _read_split(self, split: str, training: bool = False) -> Dataset:
        folder = self.root / split
        found, wanted = find_class_folders(folder), {wnid: place for place, wnid in enumerate(self.classes)}
        everything = set().union(*map(wnids_of, SUBSETS))
        if unknown := [name for name in found if name not in everything]:
            raise ValueError(
                f"{len(unknown)} folders in {str(folder)!r} are no wnids of ImageNet-21k, {unknown[0]!r} for one: "
                "remove them, or read the tree with ImageFolderDataModule, which takes any folder for a class"
            )
        missing = [wnid for wnid in self.classes if wnid not in set(found)]
        if training and missing:
            raise ValueError(
                f"{len(missing)} of the {len(wanted)} classes of data.subset={self.subset} have no folder in "
                f"{str(folder)!r}, {missing[0]} for one: choose another subset ({', '.join(SUBSETS)}), or count the "
                "folders that there are with ImageFolderDataModule"
            )
        here = {name: wanted[name] for name in found if name in wanted}
        samples = make_dataset(str(folder), here, is_valid_file=is_image_in(folder), allow_empty=True) if here else []
        filled = {label for _, label in samples}
        if empty := [name for name, label in here.items() if label not in filled]:
            where = Path(folder, empty[0])
            raise ValueError(f"no images in {len(empty)} class folders, {str(where)!r} for one: {what_is_there(where)}")
        if not samples:
            raise ValueError(f"no class of data.subset={self.subset} in {str(folder)!r}: {what_is_there(folder)}")
        return LabelledImages(samples, self.pipeline(training).sample, self.skip_corrupt, self.excluded)
