"""Finds and reads the checkpoint that the command line names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lookupvit.checkpoints.atomic import damage, load_exported
from lookupvit.checkpoints.contents import is_exported
from lookupvit.checkpoints.files import read_torch
from lookupvit.checkpoints.packaged import known, located
from lookupvit.checkpoints.sharded import check_sharded
from lookupvit.writing import say


def of_run(path: str) -> str:
    """The newest checkpoint in the folder of a run or an experiment, or the folder of a model that comes along.

    Any other path is returned unchanged.
    """
    folder = Path(path)
    if (packaged := located(path)).exists() and not folder.expanduser().exists():
        return str(packaged)
    if not folder.is_dir() or (folder / "meta.pt").exists() or not next(folder.rglob("last*.ckpt"), None):
        return path  # a file, or a checkpoint of FSDP, which is a folder
    return str(find_checkpoint("last", folder))


def find_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint that `last` or `best` means.

    Args:
        name: `"last"`: the newest `last.ckpt` below the folder; `"best"`: the best one of the same run.
        folder: Output folder of the experiment, such as `outputs/demo`.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = _by_age(folder.rglob("last*.ckpt"))
    if not found:
        raise FileNotFoundError(
            f"--ckpt_path {name}: no checkpoint below {folder}: train first, or give the path of a checkpoint"
        )
    if name == "last":
        return _newest_whole(found)
    callbacks = load(found[-1]).get("callbacks", {})
    # The callback that writes last.ckpt watches no metric; its "best" is the newest.
    best = [state["best_model_path"] for state in callbacks.values() if state.get("monitor")]
    # The folder may have been moved since, so a file of the same name beside last.ckpt counts, too.
    files = [file for path in best for file in (Path(path), found[-1].parent / Path(path).name) if file.is_file()]
    if not files:
        raise FileNotFoundError(f"--ckpt_path best: the run of {found[-1]} kept none: give the path of a checkpoint")
    return files[0]


def _by_age(files: Iterable[Path]) -> list[Path]:
    """Sorts files by run and age, oldest first; the "previous" files of a run count as older than its others.

    Times alone would not do: the files of a copied folder have the times of the copying.
    """
    times = {file: file.stat().st_mtime for file in files}
    run = {parent: max(t for file, t in times.items() if file.parent == parent) for parent in {f.parent for f in times}}
    return sorted(times, key=lambda file: (run[file.parent], file.parent, "previous" not in file.name, times[file]))


def _newest_whole(found: list[Path]) -> Path:
    """The newest file that is whole; damaged files that are newer are named on stderr."""
    for file in reversed(found):
        wrong = damage(file, zipped=True)
        if wrong is None:
            return file
        rank_zero_only(say)(f"--ckpt_path last: {file} is left out: {wrong}; trying the one before", error=True)
    raise ValueError(f"--ckpt_path last: none of the {len(found)} checkpoints beside {found[-1]} is whole: train anew")


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint without running any code in it.

    Args:
        path: A file, the folder that FSDP writes, one that `save_pretrained` writes, or the name of a model that comes
            along.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not a checkpoint, or holds more than plain data and tensors.
    """
    path = path if (path := Path(path)).exists() else located(path)
    if is_exported(path):
        return load_exported(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give an existing file, or last, or best{known()}")
    if path.suffix in (".onnx", ".pt2"):
        raise ValueError(
            f"{path} is a program, for onnxruntime or torch.export.load: give the checkpoint that it was exported "
            "from, or what export --format folder writes"
        )
    if path.is_dir():
        check_sharded(path)
    if wrong := damage(path):
        raise ValueError(f"checkpoint {path} cannot be read: {wrong}; give another, or last for the newest whole one")
    return read_torch(path / "meta.pt" if path.is_dir() else path, f"checkpoint {path}")
