"""The commands that run a Trainer: ``fit``, ``validate``, ``test``, ``predict``."""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

import datamodules
from lookupvit import tasks, trust
from lookupvit.callbacks import LastCheckpoint, PredictionWriter
from lookupvit.callbacks.config import WholeConfig
from lookupvit.callbacks.keep_data import KeepData
from lookupvit.callbacks.scores import ScoresFile
from lookupvit.checkpoints import find
from lookupvit.checkpoints.atomic import AtomicCheckpointIO
from lookupvit.checkpoints.contents import contents_of
from lookupvit.cli.common import monitor, options, run_folder, stored
from lookupvit.cli.common.callbacks import own_callbacks
from lookupvit.cli.common.errors import explain, unwrapped
from lookupvit.cli.common.includes import expand_includes, join_numbers, option_of
from lookupvit.tasks.base import Task

# Sizes that are written once, in the data, and flow to the model.
LINKED = ("num_classes", "img_size")
FRAMES = "num_frames"  # likewise, of clips; other data and models do not know it
# Shorter names of what is asked for at inference.
_SHORT = {
    "--budget_gmacs": "--model.budget_gmacs",
    "--budget_ms": "--model.budget_ms",
    "--cascade": "--model.cascade",
    "--untrained_sizes": "--model.untrained_sizes",
    "--output": "--output_dir",  # its name in other commands once
}
_CLASSES = {"data": list(datamodules.__all__), "model": list(tasks.__all__)}


class LookupViTCLI(LightningCLI):
    """LightningCLI with checkpoints that yield to the command line, and errors of one line."""

    _lock: Any = None  # on the run's folder

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises instead of exiting, and takes no abbreviated options."""
        kwargs.update(parser_mode="omegaconf+", exit_on_error=False, allow_abbrev=False)
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the output folder, the checkpoints, and the links from data to model."""
        output = run_folder.OUTPUT_DIR
        parser.add_argument("--output_dir", type=str, default=output, help="Folder of all experiments.")
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
        parser.set_defaults({**monitor.defaults(Task), "checkpoint.auto_insert_metric_name": False})
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
        self.chosen_by_file: dict[str, set[str]] = {}
        args = [
            _SHORT.get(arg.partition("=")[0], arg.partition("=")[0]) + "".join(arg.partition("=")[1:]) for arg in args
        ]
        args = expand_includes(join_numbers(args))
        command, rest = args[0], args[1:]
        path = option_of(rest, "ckpt_path")
        if path == "":
            raise ValueError("--ckpt_path is empty: give a checkpoint, or last, or best")
        self.resume_last = False
        if path is None or path in ("last", "best", "hpc") or "://" in path:
            self.config = self._parse(args)
            path = self.config[command].get("ckpt_path")
        if path in ("last", "best"):
            self.resume_last = path == "last"
            path = str(find.find_checkpoint(path, self._experiment(self.config[command])))
        if path is not None and path != "hpc" and "://" not in path:
            path = find.of_run(path)
            checkpoint = find.load(path)
            if command == "fit":
                stored.check_resumable(checkpoint, path)
            self.saved = stored.as_config(checkpoint, (*LINKED, FRAMES), args)
            if command == "predict":
                stored.for_prediction(self.saved, checkpoint, rest)
            stored.check_complete(self.saved, path, rest)
            given = dict(self.saved)
            self.config = self._parse([command, "--config", json.dumps(trust.marked(given)), *rest])
            contents, data = contents_of(checkpoint, path), self.config[command].get("data")
            if command != "fit" and (known := stored.with_pixels(self.saved.get("data", {}), data, contents)):
                given["data"] = known
                self.config = self._parse([command, "--config", json.dumps(trust.marked(given)), *rest])
                self.saved.get("data", {}).get("init_args", {}).update(known["init_args"])
            self.chosen_by_file = {
                key: trust.settle(self.config[command].get(key) or {}, key, stored.CLASSES[key], command == "fit")
                for key in given
            }
            self.config[command]["ckpt_path"] = path
        elif path is None and command != "fit":
            raise ValueError(
                f"{command} needs --ckpt_path (a file, or last, or best): without it the weights are random"
            )
        self.config[command]["include"] = None  # the saved configuration is complete

    def _parse(self, args: list[str]) -> Any:
        self._subcommand_parsers[args[0]].set_defaults(monitor.defaults(monitor.task_of(args[1:])))
        try:
            config = self.parser.parse_args(args)
        except argparse.ArgumentError as error:
            message = trust.unmarked(str(error))
            raise ValueError(explain(message, self._subcommand_parsers[args[0]], _CLASSES)) from error
        for key in ("trainer", "checkpoint"):  # the parser lets a number through in place of one of them
            if not hasattr(config[args[0]].get(key), "get"):
                raise ValueError(f"--{key} is a mapping of options, got {config[args[0]].get(key)!r}")
        return config

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: Lightning's own version would let the checkpoint win."""

    def before_instantiate_classes(self) -> None:
        """Prints what the command line changed."""
        config = self.config[self.subcommand]
        options.check_trainer(config["trainer"], self.subcommand)
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
        rank_zero_only(stored.print_differences)(
            stored.differences(self.saved, {key: config.get(key) for key in self.saved}),
            config.get("ckpt_path"),
        )

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer; an error in one of them comes out as it was raised."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            cause = unwrapped(error)
            if isinstance(cause, TypeError):
                options.check_nulls(self.config[self.subcommand])
            raise cause from None
        self.datamodule.chosen_by_file = self.chosen_by_file.get("data", set())
        given = self.config[self.subcommand].model.get("init_args") or {}
        for name in LINKED:
            asked, linked = given.get(name), getattr(self.datamodule, name, None)
            same = asked in (linked, (linked[0] if isinstance(linked, tuple) and len(set(linked)) == 1 else linked))
            if asked is not None and not same and tuple(_listed(asked)) != tuple(_listed(linked)):
                raise ValueError(f"--model.{name} {asked} contradicts the data's {linked}: set --data.{name} instead")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the callbacks and the logger that the configuration leaves open."""
        config = self.config_init[self.subcommand]
        trainer, folder, checkpoint = config["trainer"], self._experiment(config), config["checkpoint"]
        fit = self.subcommand == "fit" and not trainer["fast_dev_run"]
        own_logger = trainer["logger"] is None or trainer["logger"] is True
        run = None
        if not fit:
            self.save_config_callback = None
        if fit or (own_logger and not trainer["fast_dev_run"]):
            run = self._run_to_continue(folder) or run_folder.claim(folder)
        if fit and run is not None:
            writes = trainer["enable_checkpointing"] is not False and "://" not in str(checkpoint.dirpath)
            self._lock = run_folder.lock(Path(checkpoint.dirpath or run)) if writes else None
        kwargs["default_root_dir"] = run if fit and run is not None else folder
        if own_logger:
            version = None if run is None else run.name
            kwargs["logger"] = TensorBoardLogger(folder.parent, folder.name, version, default_hp_metric=False)
        callbacks = trainer["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        own = own_callbacks(self.subcommand, trainer, checkpoint, config["save_every_n_steps"])
        if self.subcommand == "fit":
            own.append(KeepData(self._data_config()))
        if self.subcommand in ("test", "validate"):
            own.append(ScoresFile())
        if self.subcommand == "predict":
            own.append(getattr(self.model, "prediction_writer", PredictionWriter)())
        for callback in own:
            if not any(isinstance(other, type(callback)) for other in callbacks):
                callbacks.append(callback)
        if fit and run is not None:
            run_folder.keep_checkpoints_in(run, [checkpoint, *callbacks])
        kwargs["callbacks"] = callbacks
        plugins = _listed(trainer["plugins"] or [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if trainer["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        made = super().instantiate_trainer(**kwargs)
        made.callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))  # it is to know of a new best
        return made

    def _run_to_continue(self, folder: Path) -> Path | None:
        """The run's folder that ``fit --ckpt_path last`` goes on in, with its curves and its best checkpoints."""
        path = self.config_init[self.subcommand].get("ckpt_path")
        if self.subcommand != "fit" or not self.resume_last or path is None:
            return None
        run = Path(path).absolute().parents[1]
        if run.parent != folder.absolute() or not run.name.startswith("version_"):
            return None
        self.save_config_kwargs = {**self.save_config_kwargs, "overwrite": True}
        return folder / run.name

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
        return run_folder.output_folder(config.get("output_dir"), config["trainer"]["default_root_dir"]) / name

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
            raise ValueError(stored.explain_mismatch(str(error), path)) from error
        finally:
            run_folder.unlock(self._lock)


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


def _model_name(model: Any) -> str | None:
    """The model's name, of a parsed configuration or of the task itself."""
    if isinstance(model, LightningModule):
        return model.hparams.get("name")
    return model.init_args.get("name") if model and "init_args" in model else None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
