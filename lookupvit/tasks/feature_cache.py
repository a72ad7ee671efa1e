"""What a frozen encoder says about the training images, written to disk once.

Letters: n images, B images of a batch, M tokens that the decoder reads, E their width.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn


class Features:
    """The features of n images in a file; opened at first use, so that loader processes each open it themselves.

    Args:
        path: a `.npy` file of `(n, M, E)`.
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


def cache_path(folder: str | Path, encoder: nn.Module, *about: object) -> Path:
    """The file of these features: another encoder, other images or another setting have another file.

    Args:
        folder: of all caches.
        encoder: its weights count.
        about: whatever else the features depend on, by its `repr`.
    """
    digest = hashlib.sha256(repr(about).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        # Viewed as bytes: numpy knows no bfloat16.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return Path(folder) / f"features_{digest.hexdigest()[:16]}.npy"


def write_features(
    path: Path, batches: Iterable[tuple[Tensor, Tensor]], count: int, encode: Callable[[Tensor], Tensor]
) -> None:
    """Encodes every image and writes the file; a run that is stopped leaves none.

    Args:
        path: of the file.
        batches: images `(B, 3, Y, X)` and their places `(B,)` among the n.
        count: n.
        encode: images to `(B, M, E)`.

    Raises:
        ValueError: if some image never came.
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
