"""CIFAR-10 as JPEGs in class folders: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, 32 x 32 pixels."""

import tarfile
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.images.transforms import CIFAR10_MEAN, CIFAR10_STD
from datamodules.loading.untrusted import check_may_write

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10DataModule(ImageFolderDataModule):
    """CIFAR-10: pad by 4, crop and flip. Validation and test are both the 10,000 test images, as is usual for it.

    Args:
        root: The folder that holds `train/` and `test/`.
        archive: A `.tar.xz` (or any tar) of that tree, unpacked into `root` once, if `root/train` is missing.
        img_size: Pixels; other sizes than 32 resize.
        crop_padding: Pixels to pad by before the random crop.
        crop_pct: 1: the whole image is evaluated.
        mean: CIFAR-10's.
        std: CIFAR-10's.
        val_split: `test`; set `val_fraction` to hold out training images instead.
        num_classes: 10.
        cache: Decode all images once into memory (180 MB).
        kwargs: As for `ImageFolderDataModule`.
    """

    def __init__(
        self,
        root: str = "data/cifar10",
        archive: str | None = None,
        img_size: int | tuple[int, int] = 32,
        crop_padding: int | None = 4,
        crop_pct: float | None = 1.0,
        mean: tuple[float, float, float] | None = CIFAR10_MEAN,
        std: tuple[float, float, float] | None = CIFAR10_STD,
        val_split: str = "test",
        num_classes: int | None = 10,
        cache: bool = True,
        **kwargs: Any,
    ) -> None:
        own = {"img_size": img_size, "crop_padding": crop_padding, "crop_pct": crop_pct, "mean": mean, "std": std}
        own |= {"val_split": val_split, "num_classes": num_classes, "cache": cache}
        super().__init__(root, **own, **kwargs)
        self.archive = archive

    def _known_classes(self) -> list[str] | None:
        return CLASSES

    def prepare_data(self) -> None:
        """Unpack `archive` into `root` once."""
        if self.archive is not None and not (self.root / self.train_split).is_dir():
            check_may_write(self, "root")
            unpack(self.archive, self.root)


def unpack(archive: str | Path, root: str | Path) -> None:
    """Unpack a tar file whose top level is the split folders; all of it or nothing.

    Raises:
        FileNotFoundError: There is no such archive.
        ValueError: It is damaged or no tar file.
    """
    archive, root = Path(archive).expanduser(), Path(root)
    if not archive.is_file():
        raise FileNotFoundError(f"no archive {str(archive)!r}: set data.archive to a .tar.xz of train/ and test/")
    rank_zero_info(f"unpacking {archive} into {root} (once)")
    staging = root.with_name(root.name + ".unpacking")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"cannot unpack {str(archive)!r} ({error}): fetch it again, and remove {str(staging)!r}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    # one rename per split: an interrupted run leaves no half-filled split behind
    for entry in staging.iterdir():
        entry.rename(root / entry.name)
    staging.rmdir()
