"""The folder of a run, OUTPUT_DIR/NAME/version_K: its choice, and its lock while the run goes on."""

import contextlib
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lookupvit.writing import say

OUTPUT_DIR = "outputs"  # by default


class Busy(ValueError):
    """Another process trains in the folder."""


def output_folder(output_dir: str, default_root_dir: Any) -> Path:
    """Folder of all experiments: `--output_dir`, which Lightning calls `--trainer.default_root_dir`.

    Raises:
        ValueError: If both are given and differ.
    """
    if default_root_dir is None or Path(default_root_dir) == Path(output_dir):
        return Path(output_dir)
    if Path(output_dir) != Path(OUTPUT_DIR):
        raise ValueError(
            f"--output_dir {output_dir} and --trainer.default_root_dir {default_root_dir} name two folders for the "
            "output: give one of them"
        )
    return Path(default_root_dir)


def experiment(config: Any) -> Path:
    """The folder of an experiment, OUTPUT_DIR/NAME; the name is the model's where none is given.

    Raises:
        ValueError: If the name leads out of the output folder.
    """
    model = config.get("model")
    if isinstance(model, LightningModule):
        model_name = model.hparams.get("name")
    else:
        model_name = model.init_args.get("name") if model and "init_args" in model else None
    name = config.get("name") or model_name or "lookupvit"
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise ValueError(f"--name {name!r} leads out of --output_dir: give a name, or folders below it such as a/b")
    return output_folder(config.get("output_dir"), config["trainer"]["default_root_dir"]) / name


def claim(experiment: Path) -> Path | None:
    """A new folder `version_K` of an experiment, K above all that are there; None on a rank other than 0.

    Making a folder succeeds for one process only, so that runs that start together get one each.
    """
    if rank_zero_only.rank != 0:
        return None
    experiment.mkdir(parents=True, exist_ok=True)
    numbers = [path.name.removeprefix("version_") for path in experiment.glob("version_*")]
    number = max((int(text) for text in numbers if text.isdecimal()), default=-1)
    while True:
        number += 1
        try:
            (experiment / f"version_{number}").mkdir()
        except FileExistsError:
            continue
        return experiment / f"version_{number}"


def lock(folder: Path) -> FileLock | None:
    """Locks the folder that `last.ckpt` is written to; the system takes the lock from a process that dies.

    Returns:
        The lock, to be released; None on a rank other than 0, and, with a message, where the file system has no locks.

    Raises:
        Busy: If another process has it.
    """
    if rank_zero_only.rank != 0:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / ".lock", timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise Busy(
            f"another process is training in {folder}: wait until it ends or stop it, or give another --name or "
            "--output_dir"
        ) from None
    except (NotImplementedError, OSError) as error:
        say(f"{folder} is not locked against a second run: {error}", error=True)
        return None
    return held


def release(held: FileLock) -> None:
    """Gives a lock back and removes its file; first the file, while nobody else can hold the lock."""
    with contextlib.suppress(OSError):  # of a disk that has become read-only; an empty file does no harm
        Path(held.lock_file).unlink()
    held.release()


def keep_checkpoints_in(run: Path, callbacks: list[Any]) -> None:
    """Sends the checkpoints that have no folder of their own to the run's, whatever the logger."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run / "checkpoints")
