"""Checks folders of sharded weights, as FSDP writes them, before torch unpickles them."""

import io
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch

_METADATA = ".metadata"
# Modules of the classes in an index of torch.distributed.checkpoint.
_HOMES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
# Depending on the system that wrote it.
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "tuple"),
}


class _Index(pickle.Unpickler):
    """Unpickles the data classes of an index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        plain = name.isidentifier()  # a dot would lead through a class to the modules that it imports
        found = super().find_class(module, name) if plain and (module in _HOMES or module == "torch") else None
        if module.split(".")[0] == "pathlib" and name in _PATHS:
            return getattr(pathlib, name)
        ours = module in _HOMES and isinstance(found, type) and found.__module__ == module
        if ours or (module == "torch" and isinstance(found, torch.dtype)) or (module, name) in _NAMES:
            return found if found is not None else super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def check_sharded(folder: Path) -> None:
    """Reads the index and every part that is not a tensor as torch does, but without running anything in them.

    torch itself would unpickle them without any limits.

    Raises:
        ValueError: If they hold more than an index, plain data and tensors, or name files outside the folder; one line.
    """
    index = folder / _METADATA
    if not index.is_file():
        return
    try:
        with index.open("rb") as file:
            metadata = _Index(file).load()
        for where, info in metadata.storage_data.items():
            name = info.relative_path
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"it names the file {name!r}")
            part = metadata.state_dict_metadata[where.fqn]
            if type(part).__name__ != "BytesStorageMetadata":
                continue  # torch reads tensors with weights_only
            if getattr(info, "transform_descriptors", None):
                raise ValueError(f"{where.fqn} is packed by an extension")
            with (folder / name).open("rb") as file:
                file.seek(info.offset)
                torch.load(io.BytesIO(file.read(info.length)), weights_only=True)
    except Exception as error:  # the bytes decide what pickle raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"checkpoint {folder} cannot be read: it is damaged, or holds more than plain data and tensors "
            f"({reason[:200]})"
        ) from error
