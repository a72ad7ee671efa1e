"""The callbacks that the command line adds to a Trainer."""

from typing import Any

from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console

from lookupvit.callbacks import (
    BatchPictures,
    EpochLines,
    LastCheckpoint,
    MonitorCheck,
    RunSummary,
    SkipNonFinite,
    StabilityMonitor,
)


def own_callbacks(
    command: str, trainer: dict[str, Any], checkpoint: ModelCheckpoint, every_n_steps: int | None
) -> list[Callback]:
    """What a command shows and keeps, unless its configuration has a callback of the same class.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer: The Trainer's options.
        checkpoint: What keeps the best checkpoints.
        every_n_steps: Optimiser steps between two of ``last.ckpt``; None: at the end of each epoch alone.
    """
    own: list[Callback] = []
    given = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
    if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
        own.append(RichProgressBar())
    if command != "fit":
        return own
    if not Console().is_terminal:  # the bar does not move in a log file
        own.append(EpochLines())
    own += [RunSummary(), SkipNonFinite(), MonitorCheck()]
    if trainer["enable_checkpointing"] is not False and not trainer["fast_dev_run"]:
        # ModelCheckpoint's own save_last writes only when the best ones change, which is too seldom to resume.
        own.append(LastCheckpoint(checkpoint.dirpath, every_n_steps))
    if trainer["logger"] is not False and not trainer["fast_dev_run"]:
        own += [LearningRateMonitor(logging_interval="step"), BatchPictures(), StabilityMonitor()]
    return own
