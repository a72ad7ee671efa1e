"""Pictures and tables of a run, to every logger that can take them: TensorBoard, Weights & Biases, MLflow."""

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from torch import Tensor

_ABLE = (TensorBoardLogger, WandbLogger, MLFlowLogger)


def can_show(trainer: Trainer) -> bool:
    """Whether one of a Trainer's loggers takes pictures; a CSV file does not."""
    return any(isinstance(logger, _ABLE) for logger in trainer.loggers)


def show_picture(trainer: Trainer, name: str, picture: Tensor) -> None:
    """Writes a picture `(3, Y, X)` in [0, 1] as `name`, such as `train/batch`, at the present step."""
    step = trainer.global_step
    pixels = (255 * picture.permute(1, 2, 0)).round().byte().numpy()  # (3, Y, X) -> (Y, X, 3)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [pixels], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, f"{name}/step_{step}.png")


def show_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Writes a figure as `name` at the present step."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step, close=False)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [figure], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{name}/step_{step}.png")


def show_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a table as `name` at the present step: as Markdown where a logger has no tables of its own."""
    step = trainer.global_step
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, "\n".join(lines), step)
        elif isinstance(logger, WandbLogger):
            logger.log_table(f"{name}_table", list(columns), [list(row) for row in rows], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, "\n".join(lines) + "\n", f"{name}/step_{step}.md")
