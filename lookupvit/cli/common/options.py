"""Refuses options that the parser lets through but that would end in a traceback or mislead."""

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from lookupvit.cli.common.stored import CLASSES
from lookupvit.trust import parameter

# For each option of the Trainer: its least value, and what turns it off.
_LEAST = {
    "accumulate_grad_batches": (1, "1"),
    "check_val_every_n_epoch": (1, "1, or null with val_check_interval in steps"),
    "log_every_n_steps": (0, "0"),
    "gradient_clip_val": (0, "null"),
}


def check_trainer(options: Mapping[str, Any], command: str) -> None:
    """Refuses values that Lightning divides by, clips by or trains nothing with.

    Args:
        options: Options of the Trainer.
        command: `fit`, `validate`, `test` or `predict`.

    Raises:
        ValueError: In one line, for the first of them.
    """
    for name, (least, off) in _LEAST.items():
        value = options.get(name)
        if isinstance(value, int | float) and value < least:
            raise ValueError(f"--trainer.{name} {value:g} is less than {least}: {off} turns it off")
    devices = options.get("devices")
    if not isinstance(devices, str | int | list | tuple) or (isinstance(devices, str) and "." in devices):
        raise ValueError(f"--trainer.devices {devices} is neither a number of devices nor a list of them, nor auto")
    used = {"fit": "limit_train_batches", "validate": "limit_val_batches"}.get(command, f"limit_{command}_batches")
    if options.get(used) == 0:
        raise ValueError(f"--trainer.{used} 0 leaves nothing to {command}: leave it out, or give at least 1")


def check_nulls(config: Mapping[str, Any]) -> None:
    """After a TypeError: refuses null where the class of the model or the data wants a value.

    Args:
        config: Parsed configuration of a command.

    Raises:
        ValueError: In one line, for the first of them.
    """
    for section, known in CLASSES.items():
        part = config.get(section) or {}
        kind = known.get(str(part.get("class_path")).rpartition(".")[2], object)
        for name in [name for name, value in (part.get("init_args") or {}).items() if value is None]:
            wanted = parameter(kind, name)
            if wanted is not None and wanted.default is not None and type(None) not in get_args(wanted.annotation):
                usual = "" if wanted.default is inspect.Parameter.empty else f", such as {wanted.default!r}"
                raise ValueError(f"--{section}.{name} is null: {kind.__name__} needs a value{usual}")
