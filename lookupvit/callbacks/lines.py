"""Progress where there is no terminal: one line per epoch, for log files."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochLines(Callback):
    """Prints loss, validation accuracy, seconds and images per second of each training epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock also of an epoch that is resumed in its middle, which Lightning does not start again."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._step = time.perf_counter(), trainer.global_step
        self._validation = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is timed apart."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is timed apart."""
        if not trainer.sanity_checking:
            self._validation += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line."""
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._start - self._validation
        metrics = [
            f"{name} {float(trainer.callback_metrics[name]):.4f}"
            for name in ("train/loss", "val/loss", "val/top1", "val/cider", "val/miou", "val/ap")
            if name in trainer.callback_metrics
        ]
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  "
            f"{'  '.join(metrics)}  train {seconds:.1f} s  validation {self._validation:.1f} s",
            flush=True,
        )
