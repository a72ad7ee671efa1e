"""The features of a frozen encoder, computed once for all training images and kept on disk.

Letters: n images, B images of a batch, M tokens that the decoder reads, E their width.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from rich.progress import track
from torch import Tensor, nn

from lookupvit.model.caption.captioner import Captioner
from lookupvit.tasks.base import check


def cache_features(model: Captioner, trainer: Trainer, folder: str | Path) -> None:
    """Writes the features of all training images unless they are there already, and has the data read them.

    Args:
        model: A captioner whose encoder is frozen, with its weights.
        trainer: Its data are those of `trainer.datamodule`; one rank writes, all ranks read.
        folder: The folder of all caches.

    Raises:
        ValueError: If the data cannot be cached; one line.
    """
    data = trainer.datamodule
    check(
        all(hasattr(data, name) for name in ("encoding_dataloader", "use_features", "encoding_key")),
        f"{type(data).__name__} has no features to cache: set --model.feature_cache null",
    )
    options = (model.compressed_size, model.memory, model.memory_positions)
    path = cache_path(folder, model.encoder, data.encoding_key, *options, str(trainer.precision))
    if trainer.is_global_zero and not path.is_file():
        loader, device = data.encoding_dataloader(), trainer.strategy.root_device
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            write_features(path, loader, len(loader.dataset), lambda images: model.encode(images.to(device)))
    trainer.strategy.barrier("feature_cache")
    data.use_features(Features(path))


class Features:
    """The features of n images in a file. It is opened at first use, so that each loader process opens it for itself.

    Args:
        path: A `.npy` file of `(n, M, E)`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._array: np.ndarray | None = None

    def __getitem__(self, index: int) -> Tensor:
        """Features `(M, E)` of image `index`."""
        return torch.from_numpy(np.array(self._open()[index]))

    def __len__(self) -> int:
        return len(self._open())

    def __getstate__(self) -> dict:
        return {"path": self.path, "_array": None}

    def _open(self) -> np.ndarray:
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r")
        return self._array


def cache_path(folder: str | Path, encoder: nn.Module, *settings: object) -> Path:
    """The file of these features: another encoder, other images or another setting have another file.

    Args:
        folder: The folder of all caches.
        encoder: The encoder; its weights are a part of the key.
        settings: Whatever else the features depend on, compared by its `repr`.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        # Viewed as bytes because NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return Path(folder) / f"features_{digest.hexdigest()[:16]}.npy"


def write_features(
    path: Path, batches: Iterable[tuple[Tensor, Tensor]], count: int, encode: Callable[[Tensor], Tensor]
) -> None:
    """Encodes every image and writes the file; a run that is stopped leaves none.

    Args:
        path: The file to write.
        batches: Images `(B, 3, H, W)` and their places `(B,)` among the n.
        count: Number of images n.
        encode: Function from images to features `(B, M, E)`.

    Raises:
        ValueError: If some image is missing from the batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    seen, array = np.zeros(count, dtype=bool), None
    try:
        for images, index in track(batches, f"encoding {count} images, once"):
            features = encode(images).float().cpu().numpy()
            if array is None:
                array = np.lib.format.open_memmap(part, "w+", features.dtype, (count, *features.shape[1:]))
            array[index.numpy()] = features
            seen[index.numpy()] = True
        if array is None or not seen.all():
            raise ValueError(
                f"features of {int((~seen).sum())} of {count} training images are missing, the first of image "
                f"{int((~seen).argmax())}: repair or remove corrupt images, or set --model.feature_cache null"
            )
        array.flush()
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
