"""Reads the formats of weights without running anything in a file; every error is one line."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lookupvit import trust


def check_type(condition: bool, source: str | Path, key: str, what: str, value: Any) -> None:
    """Raises a one-line ValueError that names the file and its key."""
    if not condition:
        raise ValueError(f"{source}: its {key} is not {what}: {' '.join(str(value).split())[:80]!r}")


def parsed(text: str, path: Path) -> dict[str, Any]:
    """Parses JSON that holds a mapping."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description is damaged: {error}") from error
    check_type(isinstance(value, dict), path, "description", "a mapping", value)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping."""
    try:
        value = trust.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check_type(isinstance(value, dict), path, "content", "a mapping", value)
    return value


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads safetensors: tensors by name, and the metadata."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {file} are damaged: {' '.join(str(error).split())}") from error


def read_onnx(file: Path) -> dict[str, str]:
    """Reads the metadata of an ONNX program."""
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f"{file} is a program in ONNX's format: pip install 'lookupvit[export]' to read it") from error
    try:
        return {item.key: item.value for item in onnx.load(file, load_external_data=False).metadata_props}
    except Exception as error:  # protobuf has its own kinds of errors
        raise ValueError(f"{file} is damaged, or no program in ONNX's format") from error


def read_torch(file: Path, source: str | None = None) -> dict[str, Any]:
    """Reads the plain data and tensors of a torch file without running anything in it.

    Args:
        file: The file.
        source: What to call it in messages; by default its path.
    """
    source = source or f"the file of weights {file}"
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # what torch raises for a file that is no checkpoint depends on its first bytes
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{source} holds code ({found[1]}), which was not run: have it saved as plain data and tensors"
            ) from error
        raise ValueError(f"{source} cannot be read: it is damaged, or no checkpoint of torch") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}: expected a state dict or a checkpoint")
    return content


def as_checkpoint(described: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Makes a Lightning checkpoint of a model from a file of another format.

    Args:
        described: Result of `Contents.description`.
        state: The model's state dict.
    """
    named = {f"model.{name}": value for name, value in state.items()}
    return {"pytorch-lightning_version": version("lightning"), **described, "state_dict": named}
