"""Checks before training that validation gives the metric by which the best checkpoint is chosen."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class MonitorCheck(Callback):
    """Raises before the first step if validation does not log the metric that a checkpoint monitors."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what the first batches of validation logged.

        Raises:
            ValueError: If a monitored `val/...` is not there.
        """
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        for callback in trainer.checkpoint_callbacks:
            name = callback.monitor if isinstance(callback, ModelCheckpoint) else None
            if name is not None and name.startswith("val/") and name not in known:
                raise ValueError(
                    f"--checkpoint.monitor {name} is not among the figures of this task's validation: choose one of "
                    f"{', '.join(known)}"
                )
