"""The commands that run a Trainer: ``fit``, ``validate``, ``test``, ``predict``."""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

import datamodules
from lookupvit import cli_checkpoint, tasks
from lookupvit.callbacks import (
    BatchPictures,
    EpochLines,
    LastCheckpoint,
    PredictionWriter,
    RunSummary,
    SkipNonFinite,
    StabilityMonitor,
)
from lookupvit.callbacks.config import WholeConfig
from lookupvit.callbacks.scores import ScoresFile
from lookupvit.checkpoint_io import AtomicCheckpointIO
from lookupvit.cli_config import expand_includes, join_numbers
from lookupvit.cli_errors import explain

# Sizes that are written once, in the data, and flow to the model.
LINKED = ("num_classes", "img_size")
FRAMES = "num_frames"  # likewise, of clips; other data and models do not know it
# Shorter names of what is asked for at inference.
_SHORT = {"--budget_gmacs": "--model.budget_gmacs", "--cascade": "--model.cascade"}
_CLASSES = {"data": list(datamodules.__all__), "model": list(tasks.__all__)}


class LookupViTCLI(LightningCLI):
    """LightningCLI with checkpoints that yield to the command line, and errors of one line."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises instead of exiting, and takes no abbreviated options."""
        kwargs.update(parser_mode="omegaconf+", exit_on_error=False, allow_abbrev=False)
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the output folder, the checkpoints, and the links from data to model."""
        parser.add_argument("--output_dir", type=str, default="outputs", help="Folder of all experiments.")
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the experiment; runs go to OUTPUT_DIR/NAME/version_0, 1, ... The model's name by default.",
        )
        parser.add_argument(
            "--include",
            type=str | list[str] | None,
            default=None,
            help="In a configuration file: the files that it builds on, relative to it.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            default=None,
            help="Write last.ckpt every so many optimiser steps, besides at the end of each epoch.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/top1",
                "checkpoint.mode": "max",
                "checkpoint.filename": "epoch{epoch:03d}-top1_{val/top1:.4f}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's commands; predictions go to files, not to memory."""
        commands = LightningCLI.subcommands()
        commands["predict"] = {*commands["predict"], "return_predictions"}
        return commands

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Parses; what a checkpoint's hyper-parameters say comes first, so that everything else wins over it."""
        self.saved: dict[str, Any] = {}
        args = [
            _SHORT.get(arg.partition("=")[0], arg.partition("=")[0]) + "".join(arg.partition("=")[1:]) for arg in args
        ]
        args = expand_includes(join_numbers(args))
        command, rest = args[0], args[1:]
        path = _option(rest, "ckpt_path")
        self.resume_last = False
        if path is None or path in ("last", "best"):
            self.config = self._parse(args)
            path = self.config[command].get("ckpt_path")
        if path in ("last", "best"):
            self.resume_last = path == "last"
            path = str(cli_checkpoint.find_checkpoint(path, self._experiment(self.config[command])))
        if path is not None and path != "hpc" and "://" not in path:
            path = cli_checkpoint.of_run(path)
            checkpoint = cli_checkpoint.load(path)
            self.saved = cli_checkpoint.as_config(checkpoint, (*LINKED, FRAMES))
            cli_checkpoint.check_complete(self.saved, path, rest)
            if command == "predict" and "data" in self.saved:  # there may be no training data to count classes in
                classes = checkpoint.get("hyper_parameters", {}).get("num_classes")
                if classes is not None and self.saved["data"]["init_args"].get("num_classes", classes) is None:
                    self.saved["data"]["init_args"]["num_classes"] = classes
            self.config = self._parse([command, "--config", json.dumps(self.saved), *rest])
            self.config[command]["ckpt_path"] = path
        elif path is None and command != "fit":
            raise ValueError(
                f"{command} needs --ckpt_path (a file, or last, or best): without it the weights are random"
            )
        self.config[command]["include"] = None  # the saved configuration is complete

    def _parse(self, args: list[str]) -> Any:
        try:
            config = self.parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ValueError(explain(str(error), self._subcommand_parsers[args[0]], _CLASSES)) from error
        for key in ("trainer", "checkpoint"):  # the parser lets a number through in place of one of them
            if not hasattr(config[args[0]].get(key), "get"):
                raise ValueError(f"--{key} is a mapping of options, got {config[args[0]].get(key)!r}")
        return config

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: Lightning's own version would let the checkpoint win."""

    def before_instantiate_classes(self) -> None:
        """Prints what the command line changed."""
        config = self.config[self.subcommand]
        given = (config.get("model") or {}).get("init_args") or {}
        if config.get("ckpt_path") is not None and given.get("init_from") is not None:
            given["init_from"] = None  # the checkpoint has the weights
        frames = ((config.get("data") or {}).get("init_args") or {}).get(FRAMES)
        if frames is not None and FRAMES in given:
            if given[FRAMES] not in (None, frames):
                raise ValueError(
                    f"--model.{FRAMES} {given[FRAMES]} contradicts the data's {frames}: set --data.{FRAMES} instead"
                )
            given[FRAMES] = frames
        rank_zero_only(cli_checkpoint.print_differences)(
            cli_checkpoint.differences(self.saved, {key: config.get(key) for key in self.saved}),
            config.get("ckpt_path"),
        )

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer; an error in one of them comes out as it was raised."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the parser wraps what an __init__ raises, bugs too
                cause = cause.__cause__
            raise cause from None
        given = self.config[self.subcommand].model.get("init_args") or {}
        for name in LINKED:
            asked, linked = given.get(name), getattr(self.datamodule, name, None)
            same = asked in (linked, (linked[0] if isinstance(linked, tuple) and len(set(linked)) == 1 else linked))
            if asked is not None and not same and tuple(_listed(asked)) != tuple(_listed(linked)):
                raise ValueError(f"--model.{name} {asked} contradicts the data's {linked}: set --data.{name} instead")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the callbacks and the logger that the configuration leaves open."""
        config = self.config_init[self.subcommand]
        trainer, folder = config["trainer"], self._experiment(config)
        if trainer["default_root_dir"] is None:
            kwargs["default_root_dir"] = folder
        if self.subcommand != "fit" or trainer["logger"] is False:  # without a logger there is no folder for each run
            self.save_config_callback = None
        if trainer["logger"] is None or trainer["logger"] is True:
            version = self._version_to_continue(folder)
            if version is not None:
                self.save_config_kwargs = {**self.save_config_kwargs, "overwrite": True}
            kwargs["logger"] = TensorBoardLogger(folder.parent, folder.name, version, default_hp_metric=False)
        callbacks = trainer["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        for callback in self._own_callbacks(trainer, config["checkpoint"], config["save_every_n_steps"]):
            if not any(isinstance(other, type(callback)) for other in callbacks):
                callbacks.append(callback)
        kwargs["callbacks"] = callbacks
        plugins = _listed(trainer["plugins"] or [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if trainer["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        made = super().instantiate_trainer(**kwargs)
        made.callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))  # it is to know of a new best
        return made

    def _version_to_continue(self, folder: Path) -> str | None:
        """The run's folder that ``fit --ckpt_path last`` goes on in, with its curves and its best checkpoints."""
        path = self.config_init[self.subcommand].get("ckpt_path")
        if self.subcommand != "fit" or not self.resume_last or path is None:
            return None
        run = Path(path).absolute().parents[1]
        return run.name if run.parent == folder.absolute() and run.name.startswith("version_") else None

    def _own_callbacks(
        self, trainer: dict[str, Any], checkpoint: ModelCheckpoint, every_n_steps: int | None
    ) -> list[Callback]:
        own: list[Callback] = []
        given = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
        if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            own.append(RichProgressBar())
        if self.subcommand == "fit":
            if not Console().is_terminal:  # the bar does not move in a log file
                own.append(EpochLines())
            own += [RunSummary(), SkipNonFinite(), cli_checkpoint.KeepData(self._data_config())]
            if trainer["enable_checkpointing"] is not False and not trainer["fast_dev_run"]:
                # ModelCheckpoint's own save_last writes only when the best ones change, which is too seldom to resume.
                own.append(LastCheckpoint(checkpoint.dirpath, every_n_steps))
            if trainer["logger"] is not False and not trainer["fast_dev_run"]:
                own += [LearningRateMonitor(logging_interval="step"), BatchPictures(), StabilityMonitor()]
        if self.subcommand in ("test", "validate"):
            own.append(ScoresFile())
        if self.subcommand == "predict":
            own.append(getattr(self.model, "prediction_writer", PredictionWriter)())
        return own

    def _data_config(self) -> dict[str, Any]:
        self._dump_config()
        data = self.config_dump["data"]
        return {
            "class_path": data["class_path"],
            "init_args": {**data.get("init_args", {}), **data.get("dict_kwargs", {})},
        }

    def _experiment(self, config: Any) -> Path:
        """Output folder of the experiment: OUTPUT_DIR/NAME."""
        name = config.get("name") or _model_name(config.get("model")) or "lookupvit"
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
            raise ValueError(f"--name {name!r} leads out of --output_dir: give a name, or folders below it such as a/b")
        return Path(config.get("output_dir")) / name

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = self.config[subcommand].get("ckpt_path")
        kwargs["weights_only"] = True
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            path = self.config[subcommand].get("ckpt_path")
            raise ValueError(cli_checkpoint.explain_mismatch(str(error), path)) from error


def run(argv: list[str]) -> LookupViTCLI:
    """Runs one of the Trainer's commands.

    Args:
        argv: The command and its arguments.

    Raises:
        ValueError: If the arguments do not fit; the message is one line.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    warnings.filterwarnings("ignore", message=".*is deprecated, use `isinstance\\(treespec", module="lightning")
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    if argv and argv[0] != "fit":  # which checkpoints a finished run kept is of no concern to its readers
        warnings.filterwarnings("ignore", message="(The dirpath has changed|Be aware that when using `ckpt_path`)")
    return LookupViTCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=WholeConfig,
        seed_everything_default=0,
        trainer_defaults={"enable_model_summary": False},
        args=argv,
    )


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _option(args: list[str], name: str) -> str | None:
    """The last value of ``--name`` among the arguments."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def _model_name(model: Any) -> str | None:
    """The model's name, of a parsed configuration or of the task itself."""
    if isinstance(model, LightningModule):
        return model.hparams.get("name")
    return model.init_args.get("name") if model and "init_args" in model else None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
