"""`last.ckpt`, from which a run is resumed: after each epoch, every n steps, and when a scheduler stops the run."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lookupvit.callbacks.flags import Later
from lookupvit.checkpoints.atomic import LAST
from lookupvit.writing import say

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(Exception):
    """Training stopped because of a signal, after a checkpoint; the process ends with `EXIT_REQUEUE`."""


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` at the end of each epoch, every `every_n_steps` optimiser steps, and on a signal.

    SIGTERM, SIGUSR1 and a first SIGINT (Ctrl-C) only raise a flag. At the end of an optimiser's step the ranks start to
    exchange their flags; the answer is there at the end of the next step, when they write the checkpoint together and
    stop. A single rank stops at the end of the same step. A second SIGINT ends the process at once. During validation
    the flag waits for the next step or the end of the epoch, so that a checkpoint never holds half a validation.

    Args:
        dirpath: Folder; None: the run's own.
        every_n_steps: Optimiser steps between two checkpoints; None: at the end of each epoch alone.
        on_signal: Whether to take over the signals.
    """

    def __init__(
        self, dirpath: str | Path | None = None, every_n_steps: int | None = None, on_signal: bool = True
    ) -> None:
        super().__init__(
            dirpath, Path(LAST).stem, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"save_every_n_steps must be at least 1, got {every_n_steps}; null: once an epoch")
        self.every_n_steps, self.on_signal = every_n_steps, on_signal
        self.received: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}
        self._exchange: Later | None = None  # the flags of the previous step, of all ranks

    # -- signals -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the signals over, also from Lightning, whose handler hangs when several ranks are signalled at once."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or not self.on_signal or threading.current_thread() is not threading.main_thread():
            return
        self._launcher = trainer.strategy.launcher
        trainer._signal_connector.register_signal_handlers = lambda: None
        for number in SIGNALS:
            self._handlers.setdefault(number, signal.signal(number, self._note))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _note(self, number: int, frame: Any) -> None:
        # Nothing but a flag: whatever else a handler does may happen inside a collective operation.
        if number == signal.SIGINT and self.received == signal.SIGINT:
            if self._launcher is not None and hasattr(self._launcher, "kill"):
                self._launcher.kill(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.received = signal.Signals(number)

    @property
    def last_good(self) -> str:
        """The newest checkpoint of this run."""
        return self._last_checkpoint_saved

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes a checkpoint if one is due, and stops if any rank was signalled.

        Raises:
            Preempted: After the checkpoint, on all ranks.
        """
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or trainer.fast_dev_run:  # half a step cannot be resumed
            return
        if trainer.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            return  # a validation or the end of the epoch comes first; the flag stays up
        stop = self._agreed(trainer)
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if (stop or due) and self._last_global_step_saved != trainer.global_step:
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
        if stop:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's checkpoint, and stops if any rank was signalled and the run is not over anyway.

        Raises:
            Preempted: After the checkpoint, on all ranks.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.fast_dev_run or trainer.current_epoch + 1 == trainer.max_epochs:
            return
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self._stop(trainer)

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any rank was signalled; with several ranks, whether one was when the previous step ended.

        The exchange that this step starts runs beside the next step, so that no rank waits for it.
        """
        if trainer.world_size == 1:
            return self.received is not None
        flag = torch.full((1,), float(self.received is not None), device=trainer.strategy.root_device)
        previous, self._exchange = self._exchange, Later(flag, reduce=True)
        return previous is not None and previous.read()[0]

    def _stop(self, trainer: Trainer) -> None:
        name = "another rank's signal" if self.received is None else self.received.name
        if trainer.is_global_zero:
            saved = f"{name}: saved {self.best_model_path} at step {trainer.global_step}"
            say(f"{saved}; go on with --ckpt_path last (exit code {EXIT_REQUEUE})", error=True)
        raise Preempted(name)
