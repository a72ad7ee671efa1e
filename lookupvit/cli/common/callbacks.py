"""The callbacks and plugins that the command line adds to a Trainer."""

from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console

from lookupvit.callbacks import (
    BatchPictures,
    EpochLines,
    LastCheckpoint,
    MonitorCheck,
    PredictionWriter,
    RunSummary,
    SkipNonFinite,
    StabilityMonitor,
)
from lookupvit.callbacks.keep_data import KeepData
from lookupvit.callbacks.scores import ScoresFile
from lookupvit.checkpoints.atomic import AtomicCheckpointIO


def all_callbacks(command: str, config: Any, model: LightningModule, data: dict[str, Any]) -> list[Callback]:
    """The callbacks of a configuration, and those of the command that it has none of the same class of.

    Args:
        command: "fit", "validate", "test" or "predict".
        config: The command's configuration, whose callbacks are built.
        model: The task, which knows how its predictions are written.
        data: Configuration of the data as plain values, to be kept in checkpoints.
    """
    given = _listed(config["trainer"]["callbacks"])
    own = _shown(config["trainer"], given)
    if command == "fit":
        own += [*_of_fit(config), KeepData(data)]
    elif command == "predict":
        own.append(getattr(model, "prediction_writer", PredictionWriter)())
    else:
        own.append(ScoresFile())
    return given + [callback for callback in own if not any(isinstance(other, type(callback)) for other in given)]


def with_atomic_writes(plugins: Any) -> list[Any]:
    """A Trainer's plugins, with one that writes checkpoints whole or not at all, unless there is another such one."""
    plugins = _listed(plugins)
    return plugins if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [*plugins, AtomicCheckpointIO()]


def _shown(trainer: Any, given: list[Callback]) -> list[Callback]:
    hidden = trainer["enable_progress_bar"] is False or any(isinstance(callback, ProgressBar) for callback in given)
    return [] if hidden else [RichProgressBar()]


def _of_fit(config: Any) -> list[Callback]:
    """What a training shows and keeps."""
    trainer = config["trainer"]
    own: list[Callback] = [] if Console().is_terminal else [EpochLines()]  # the bar does not move in a log file
    own += [RunSummary(), SkipNonFinite(), MonitorCheck()]
    if trainer["fast_dev_run"]:
        return own
    if trainer["enable_checkpointing"] is not False:
        # ModelCheckpoint's own save_last writes only when the best ones change, which is too seldom to resume.
        own.append(LastCheckpoint(config["checkpoint"].dirpath, config["save_every_n_steps"]))
    if trainer["logger"] is not False:
        own += [LearningRateMonitor(logging_interval="step"), BatchPictures(), StabilityMonitor()]
    return own


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []
