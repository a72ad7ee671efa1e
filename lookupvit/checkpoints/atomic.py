"""Writes checkpoints that are complete or do not exist: under another name first, synchronised, then renamed."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lookupvit.checkpoints.contents import is_exported, read_contents
from lookupvit.checkpoints.files import as_checkpoint

LAST = "last.ckpt"
PREVIOUS = "last.previous.ckpt"


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to `.NAME.partial` in the same folder, waits for the disk, and renames.

    A process that is killed at any moment leaves the old or the new file under the final name. The `last.ckpt` before
    the newest is kept as `last.previous.ckpt`, in case the file system damages the newest. URLs are left to Lightning.
    """

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Reads a checkpoint; a model that `save_pretrained` or `save_weights` wrote is read as a checkpoint.

        Paths of files that Lightning may remove are kept only if they lie in the run's own folder.
        """
        if is_exported(path):
            return load_exported(path)
        checkpoint = super().load_checkpoint(path, *args, **options)
        if isinstance(checkpoint, dict):
            _own_paths(checkpoint)
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointWriteError: If the disk is full or refuses; nothing is left of the attempt.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.is_file():
                _keep(path, path.with_name(PREVIOUS))
            os.replace(partial, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch's zip writer hides the disk's error behind its own
            partial.unlink(missing_ok=True)
            raise CheckpointWriteError(_explain(path, error)) from error


def load_exported(path: str | Path) -> dict[str, Any]:
    """Reads a folder of `save_pretrained`, or safetensors, as the checkpoint of a task before its first step.

    Raises:
        ValueError: If it does not say which model it holds, or is damaged; in one line.
    """
    contents = read_contents(path)
    if contents.name is None:
        raise ValueError(f"{path} does not say which model it holds: give a folder that lookupvit export wrote")
    return as_checkpoint(contents.description(), contents.content)


def _own_paths(checkpoint: dict[str, Any]) -> None:
    """Takes out of `ModelCheckpoint`'s state the paths of files outside its folder, because it may delete these files.

    A path is kept if it lies directly in the folder that the state names; if that is not the run's folder, Lightning
    itself removes nothing in it.
    """
    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict) or "best_model_path" not in state:
            continue
        folder = state.setdefault("dirpath", "")  # without it Lightning takes the paths for the run's own

        def own(path: Any, folder: Any = folder) -> bool:
            return isinstance(path, str) and os.path.dirname(path) == str(folder) and os.path.basename(path) != ".."

        for name in ("kth_best_model_path", "last_model_path"):
            if name in state and not own(state[name]):
                state[name] = ""
        if isinstance(state.get("best_k_models"), dict):
            state["best_k_models"] = {path: score for path, score in state["best_k_models"].items() if own(path)}
        if not own(state["best_model_path"]) and ".." in Path(str(state["best_model_path"])).parts:
            state["best_model_path"] = ""


def damage(path: str | Path, zipped: bool = False) -> str | None:
    """Says in a few words what is wrong with a checkpoint file; None if the checksums of all its parts are right.

    It reads the whole file. Files of torch's old format have no checksums; they pass unless the file must be `zipped`,
    as those of this project are.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if not head:
            return "it is empty"
        if head != b"PK":
            return "its first bytes are not a checkpoint's" if zipped else None
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return "it is packed, which torch's own files are not"
            if sum(part.file_size for part in parts) > path.stat().st_size:
                return "its parts are larger than it is"
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"it is cut short or damaged ({' '.join(str(error).split()).rstrip('.').lower()})"
    return None if broken is None else f"its part {broken} has a wrong checksum"


def _keep(path: Path, previous: Path) -> None:
    """Keeps the present file under a second name; both names exist at every moment."""
    spare = previous.with_name(f".{previous.name}.partial")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
        os.replace(spare, previous)
    except OSError:  # without hard links last.ckpt is missing until the next rename, but its previous one exists
        os.replace(path, previous)


def _sync_folder(folder: Path) -> None:
    """Waits until the rename itself is on disk, if the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _explain(path: Path, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else " ".join(str(error).split())
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free / 1e9
    return (
        f"cannot write the checkpoint {path}: {reason} ({free:.1f} GB free there); those before it are whole: "
        "make room, or set another --output_dir, and resume with --ckpt_path last"
    )
