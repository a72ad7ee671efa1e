"""`--trainer.logger NAME`: loggers by short names, which write to the folder of the run."""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

Name = Literal["tensorboard", "csv", "wandb", "mlflow"]


def add_short_names(parser: ArgumentParser) -> None:
    """Lets `--trainer.logger` also be a short name, or a list of them."""
    for action in parser._actions:
        if action.dest == "trainer.logger":
            action._typehint = action._typehint | Name | list[Name]


def short_names(logger: Any) -> list[str] | None:
    """The short names that a configuration's `trainer.logger` stands for; None if it is something else."""
    if logger is None or logger is True:
        return ["tensorboard"]
    names = [logger] if isinstance(logger, str) else logger
    return list(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else None


def build(names: list[str], experiment: Path, version: str | None) -> list[Logger]:
    """The loggers of a run.

    Weights & Biases and MLflow go where their own environment variables say (WANDB_MODE, WANDB_PROJECT,
    MLFLOW_TRACKING_URI); without these to the project `lookupvit`, and to the folder `mlruns` beside the experiments.

    Args:
        names: Short names.
        experiment: OUTPUT_DIR/NAME.
        version: The run's folder in it, `version_K`; None on ranks that do not write, and in a quick test.

    Raises:
        ModuleNotFoundError: If a logger's package is not installed.
    """
    makers = {"tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow}
    return [makers[name](experiment, version) for name in dict.fromkeys(names)]


def _tensorboard(experiment: Path, version: str | None) -> Logger:
    return TensorBoardLogger(experiment.parent, experiment.name, version, default_hp_metric=False)


def _csv(experiment: Path, version: str | None) -> Logger:
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    if version is not None and (old := experiment / version / "metrics.csv").is_file():  # Lightning would remove it
        number = len(list(old.parent.glob("metrics_before_*.csv")))
        old.rename(old.with_name(f"metrics_before_{number}.csv"))
    return CSVLogger(experiment.parent, experiment.name, version)


def _wandb(experiment: Path, version: str | None) -> Logger:
    folder = experiment if version is None else experiment / version
    name = experiment.name if version is None else f"{experiment.name}/{version}"
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(name=name, save_dir=folder, project=os.environ.get("WANDB_PROJECT", "lookupvit"))


def _mlflow(experiment: Path, version: str | None) -> Logger:
    return MLFlowLogger(experiment.name, run_name=version, save_dir=str(experiment.parent / "mlruns"))


def finish(loggers: list[Logger]) -> None:
    """Ends the runs that would take in the next one of this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish()
