"""The commands that run a Trainer: `fit`, `validate`, `test`, `predict`.

`run` builds a `LookupViTCLI`, whose methods stand in the order in which Lightning calls them: options, parsing,
data and model, Trainer, the command itself.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lookupvit import trust
from lookupvit.callbacks import LastCheckpoint
from lookupvit.callbacks.config import WholeConfig
from lookupvit.checkpoints import find
from lookupvit.checkpoints.contents import contents_of
from lookupvit.cli.common import help as help_text
from lookupvit.cli.common import links, loggers, monitor, options, run_folder, stored
from lookupvit.cli.common.callbacks import all_callbacks, with_atomic_writes
from lookupvit.cli.common.errors import raise_cause
from lookupvit.cli.common.explain import explain
from lookupvit.cli.common.includes import expand_includes, expand_short, join_numbers, option_of
from lookupvit.tasks.base import Task


def run(argv: list[str]) -> "LookupViTCLI":
    """Runs one of the Trainer's commands.

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


class LookupViTCLI(LightningCLI):
    """A LightningCLI in which the command line wins over a checkpoint's settings, with errors of one line."""

    _lock: Any = None  # of the run's folder

    # -- options ------------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's commands; predictions go to files, not to memory."""
        commands = LightningCLI.subcommands()
        commands["predict"] = {*commands["predict"], "return_predictions"}
        return commands

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises instead of exiting, and takes no abbreviated options."""
        kwargs.update(parser_mode="omegaconf+", exit_on_error=False, allow_abbrev=False)
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the output folder, the checkpoints, and the links from data to model."""
        output = run_folder.OUTPUT_DIR
        parser.add_argument("--output_dir", type=str, default=output, help="Folder of all experiments.")
        text = "Name of the experiment; runs go to OUTPUT_DIR/NAME/version_0, 1, ... The model's name by default."
        parser.add_argument("--name", type=str | None, default=None, help=text)
        text = "In a configuration file: the files that it builds on, relative to it."
        parser.add_argument("--include", type=str | list[str] | None, default=None, help=text)
        text = "Write last.ckpt every n optimiser steps, besides at the end of each epoch."
        parser.add_argument("--save_every_n_steps", type=int | None, default=None, help=text)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({**monitor.defaults(Task), "checkpoint.auto_insert_metric_name": False})
        links.add(parser)
        loggers.add_short_names(parser)

    # -- parsing ------------------------------------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Parses the arguments; a checkpoint's settings come first, so that everything else wins over them."""
        self.saved: dict[str, Any] = {}  # what the checkpoint says of the model and the data
        self.chosen_by_file: dict[str, set[str]] = {}  # options that the checkpoint chose, not the user
        args = expand_includes(join_numbers(expand_short(args)))
        command, rest = args[0], ["--help" if arg == "--help_all" else arg for arg in args[1:]]
        if rest == args[1:] and (section := help_text.asked(rest)) is not None:
            print(help_text.text_of(command, section, self._subcommand_parsers[command]), end="")
            raise SystemExit(0)
        args = [command, *rest]
        path = option_of(rest, "ckpt_path")
        if path == "":
            raise ValueError("--ckpt_path is empty: give a checkpoint, or last, or best")
        if path in (None, "last", "best", "hpc") or "://" in path:  # no file yet, or none that can be read here
            self.config = self._parse(args)
            path = self.config[command].get("ckpt_path")
        self.resume_last = path == "last"
        if path in ("last", "best"):
            path = str(find.find_checkpoint(path, run_folder.experiment(self.config[command])))
        if path is None and command != "fit":
            raise ValueError(
                f"{command} needs --ckpt_path (a file, or last, or best): without it the weights are random"
            )
        if path is not None and path != "hpc" and "://" not in path:
            self._parse_with_checkpoint(command, rest, find.of_run(path))
        self.config[command]["include"] = None  # the saved configuration is complete

    def _parse_with_checkpoint(self, command: str, args: list[str], path: str) -> None:
        """Parses the arguments on top of what a checkpoint says of its model, its data and its pixels."""
        checkpoint = find.load(path)
        if command == "fit":
            stored.check_resumable(checkpoint, path)
        self.saved = stored.as_config(checkpoint, (*links.LINKED, links.FRAMES), [command, *args])
        if command == "predict":
            stored.for_prediction(self.saved, checkpoint, args)
        stored.check_complete(self.saved, path, args)

        def parse(given: dict[str, Any]) -> Any:
            return self._parse([command, "--config", json.dumps(trust.marked(given)), *args])

        given = dict(self.saved)
        self.config = parse(given)
        contents, data = contents_of(checkpoint, path), self.config[command].get("data")
        if command != "fit" and (known := stored.with_pixels(self.saved.get("data", {}), data, contents)):
            given["data"] = known
            self.config = parse(given)
            self.saved.get("data", {}).get("init_args", {}).update(known["init_args"])
        self.chosen_by_file = {
            key: trust.settle(self.config[command].get(key) or {}, key, stored.CLASSES[key], command == "fit")
            for key in given
        }
        self.config[command]["ckpt_path"] = path

    def _parse(self, args: list[str]) -> Any:
        self._subcommand_parsers[args[0]].set_defaults(monitor.defaults(monitor.task_of(args[1:])))
        try:
            config = self.parser.parse_args(args)
        except argparse.ArgumentError as error:
            message = trust.unmarked(str(error))
            raise ValueError(explain(message, self._subcommand_parsers[args[0]], stored.CLASSES)) from error
        for key in ("trainer", "checkpoint"):  # the parser lets a number through in place of one of them
            if not hasattr(config[args[0]].get(key), "get"):
                raise ValueError(f"--{key} is a mapping of options, got {config[args[0]].get(key)!r}")
        return config

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning's own version would let the checkpoint win."""

    # -- data and model -----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Hands the clips' length to the model, and prints what the command line changed in a checkpoint's settings.

        The model's `init_from` is set to None where a checkpoint has the weights.
        """
        config = self.config[self.subcommand]
        options.check_trainer(config["trainer"], self.subcommand)
        model = (config.get("model") or {}).get("init_args") or {}
        if config.get("ckpt_path") is not None and model.get("init_from") is not None:
            model["init_from"] = None
        links.link_frames((config.get("data") or {}).get("init_args") or {}, model)
        changed = stored.differences(self.saved, {key: config.get(key) for key in self.saved})
        rank_zero_only(stored.print_differences)(changed, config.get("ckpt_path"))

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer; an error in one of them comes out as it was raised."""
        try:
            with raise_cause():
                super().instantiate_classes()
        except TypeError:
            options.check_nulls(self.config[self.subcommand])
            raise
        self.datamodule.chosen_by_file = self.chosen_by_file.get("data", set())
        links.check(self.config[self.subcommand].model.get("init_args") or {}, self.datamodule)

    # -- the Trainer --------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the folder, the callbacks and the logger that the configuration leaves open."""
        config = self.config_init[self.subcommand]
        trainer, checkpoint, folder = config["trainer"], config["checkpoint"], run_folder.experiment(config)
        writes_run = self.subcommand == "fit" and not trainer["fast_dev_run"]
        run = None
        if not writes_run:
            self.save_config_callback = None
        names = loggers.short_names(trainer["logger"])
        own_logger = names is not None
        if writes_run or (own_logger and not trainer["fast_dev_run"]):
            run = self._run_to_continue(folder) or run_folder.claim(folder)
        kwargs["default_root_dir"] = run if writes_run and run is not None else folder
        if own_logger:
            kwargs["logger"] = loggers.build(names, folder, None if run is None else run.name)
        data = self._data_config() if self.subcommand == "fit" else {}
        kwargs["callbacks"] = all_callbacks(self.subcommand, config, self.model, data)
        kwargs["plugins"] = with_atomic_writes(trainer["plugins"])
        if trainer["enable_checkpointing"] is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        if writes_run and run is not None:
            if trainer["enable_checkpointing"] is not False and "://" not in str(checkpoint.dirpath):
                self._lock = run_folder.lock(Path(checkpoint.dirpath or run))
            run_folder.keep_checkpoints_in(run, [checkpoint, *kwargs["callbacks"]])
        made = super().instantiate_trainer(**kwargs)
        made.callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))  # it is to know of a new best
        return made

    def _run_to_continue(self, folder: Path) -> Path | None:
        """The folder of the run that `fit --ckpt_path last` continues, with its curves and its best checkpoints."""
        path = self.config_init[self.subcommand].get("ckpt_path")
        if self.subcommand != "fit" or not self.resume_last or path is None:
            return None
        run = Path(path).absolute().parents[1]
        if run.parent != folder.absolute() or not run.name.startswith("version_"):
            return None
        self.save_config_kwargs = {**self.save_config_kwargs, "overwrite": True}
        return folder / run.name

    def _data_config(self) -> dict[str, Any]:
        """The configuration of the data as plain values."""
        self._dump_config()
        data = self.config_dump["data"]
        init_args = {**data.get("init_args", {}), **data.get("dict_kwargs", {})}
        return {"class_path": data["class_path"], "init_args": init_args}

    # -- the command itself -------------------------------------------------------------------------------------------

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs |= {"ckpt_path": self.config[subcommand].get("ckpt_path"), "weights_only": True}
        return kwargs | ({"return_predictions": False} if subcommand == "predict" else {})

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            path = self.config[subcommand].get("ckpt_path")
            raise ValueError(stored.explain_mismatch(str(error), path)) from error
        finally:
            loggers.finish(self.trainer.loggers)
            if self._lock is not None:
                run_folder.release(self._lock)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
