"""The configuration of the data, kept in each checkpoint."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lookupvit.checkpoints.contents import DATA


class KeepData(Callback):
    """Keeps the data's configuration in each checkpoint, so that a checkpoint alone says how its images were made.

    Args:
        config: `{"class_path": str, "init_args": {...}}`, plain data.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration."""
        checkpoint[DATA] = self.config
