"""Pictures of a training batch as the model sees it, to TensorBoard."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid


class BatchPictures(Callback):
    """Writes the first training batch, augmented and un-normalised, to TensorBoard as `train/batch`.

    Args:
        count: Pictures at most.
        columns: Pictures per row.
    """

    def __init__(self, count: int = 32, columns: int = 8) -> None:
        self.count = count
        self.columns = columns
        self.done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes once, at the first batch."""
        if self.done or not trainer.is_global_zero:
            return
        self.done = True
        images = batch["images"] if isinstance(batch, dict) else batch[0]
        if not isinstance(images, torch.Tensor) or images.ndim != 4:  # a list, clips, or features in place of images
            return
        data = trainer.datamodule
        grid = picture_grid(images[: self.count], getattr(data, "mean", None), getattr(data, "std", None), self.columns)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("train/batch", grid, trainer.global_step)


def picture_grid(
    images: torch.Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, columns: int = 8
) -> torch.Tensor:
    """One picture of many: images `(B, 3, H, W)`, normalised by `mean` and `std`, to `(3, Y, X)` in [0, 1]."""
    images = images.detach().float().cpu()
    if mean is not None and std is not None:
        images = images * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    return make_grid(images.clamp(0, 1), nrow=columns, padding=2)
