"""Weights on disk: safetensors and torch or Lightning checkpoints, read without running anything that is in them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lookupvit.checkpoints.contents import (
    DESCRIPTION,
    DETECTION,
    OWN_ARGUMENTS,
    SEGMENTATION,
    Contents,
    read_contents,
    task_of,
)
from lookupvit.checkpoints.files import as_checkpoint
from lookupvit.grid import grid_of, to_2tuple
from lookupvit.sizes import MODELS, name_for

# What wrappers put anywhere into a parameter's name, and prefixes that all names of a file may have.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PREFIXES = ("module.", "model.")
# Keys under which training scripts keep weights and averaged weights, and prefixes of the latter's names.
_KEYS = ("state_dict", "model_state_dict", "model", "module")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_AVERAGED_PREFIXES = ("ema_model.", "model_ema.", "averaged_model.", "ema.")


@dataclass
class Weights:
    """A state dict and what its file says about it.

    Attributes:
        state: Tensors by name, without the prefixes of wrappers.
        source: What to call the weights in messages.
        grid: Token grid of the position embeddings; None if the file does not say.
        num_heads: Number of attention heads; None if the file does not say.
        dropped: Names that were left out, with the reason.
        contents: What else the file says, such as its model, classes and pixels; None for a state dict without a file.
    """

    state: dict[str, Tensor]
    source: str = "a state dict"
    grid: tuple[int, ...] | None = None
    num_heads: int | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    contents: Contents | None = None


def read_weights(path: str | Path, ema: bool = True) -> Weights:
    """Reads the weights of a file, or of a folder that `save_pretrained` wrote.

    Prefixes of torch.compile, DDP, FSDP and LightningModules are removed. Where the file holds averaged weights (EMA)
    beside the raw ones, one of them is taken and the other listed as dropped.

    Args:
        path: safetensors, or a checkpoint of torch or Lightning; told apart by their content.
        ema: Whether to take the averaged weights if there are some; False takes the raw ones.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is damaged, holds no weights, or more than plain data and tensors; in one line.
    """
    contents = read_contents(path)
    weights = Weights({}, contents.source, contents=contents)
    state = _choose(contents.content, ema, weights)
    weights.state = _without_prefixes(state, ema, "pytorch-lightning_version" in contents.content, weights.dropped)
    if not weights.state:
        raise ValueError(f"weights {contents.source} hold no tensors: give a state dict or a checkpoint")
    known = contents.facts
    if "grid" in known and "num_heads" in known:
        weights.grid, weights.num_heads = _stated(known, contents.source)
    return with_facts(weights, contents.hyper_parameters)


def as_weights(source: str | Path | Mapping[str, Tensor] | Weights, ema: bool = True) -> Weights:
    """Reads the weights of a path or a state dict, without wrapper prefixes; `Weights` are returned unchanged."""
    if isinstance(source, Weights):
        return source
    if not isinstance(source, Mapping):
        return read_weights(source, ema)
    weights = Weights({})
    weights.state = _without_prefixes(dict(source), ema, False, weights.dropped)
    return weights


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Writes a model's weights.

    Args:
        model: A `LookupViT` or another model of the zoo.
        path: `.safetensors`, with the grid of the positions and the number of heads beside the tensors; or `.ckpt`, a
            Lightning checkpoint that `lookupvit test`, `predict` and `--model.init_from` take.

    Raises:
        ValueError: For another ending.
    """
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    described = contents_of_model(model).description()
    if path.suffix == ".safetensors":
        notes = {**facts(model), DESCRIPTION: described}
        save_file(state, path, metadata={"format": "pt", **{key: json.dumps(value) for key, value in notes.items()}})
    elif path.suffix == ".ckpt":
        torch.save(as_checkpoint(described, state), path)
    else:
        raise ValueError(f"weights {path}: the ending {path.suffix!r} is unknown: choose .safetensors or .ckpt")


def contents_of_model(model: nn.Module) -> Contents:
    """What a file of this model says of it: name, arguments, pixels, classes, trained sizes and scores."""
    if hasattr(model, "arguments"):  # of a segmenter or a detector, whose arguments are those of its task
        kind = f"detection.{DETECTION}" if hasattr(model, "detector") else f"segmentation.{SEGMENTATION}"
        task, hyper = f"lookupvit.tasks.{kind}", {**model.arguments, **model.task_options}
        names, sizes, scores = model.class_names, model.trained_sizes, dict(model.scores)
        return Contents(type(model).__name__, {}, {}, task, hyper, {}, model.pixels, names, sizes, scores)
    config = dict(model._hub_mixin_config)
    given = {key: config.pop(key) for key in OWN_ARGUMENTS if key in config}
    name = name_for([kind.__name__ for kind in type(model).__mro__], config)
    hyper = {"name": name, **given, "args": config, **model.task_options}
    names = list(model.class_names) if model.class_names else None
    sizes, scores = model.trained_sizes, dict(model.scores)
    return Contents(type(model).__name__, {}, {}, task_of(given), hyper, {}, model.pixels, names, sizes, scores)


def facts(model: nn.Module) -> dict[str, Any]:
    """The token grid of the positions and the number of attention heads, which a state dict does not show."""
    model = getattr(model, "backbone", model)  # of a segmenter
    inner = getattr(model, "vit", model)
    grid = model.vit.patch_embed.grid_size if hasattr(model, "vit") else model.embed.grid_size
    return {"grid": list(grid), "num_heads": inner.blocks[0].attn.num_heads}


def _stated(header: dict[str, str], source: str) -> tuple[tuple[int, ...], int]:
    """Grid and number of heads from the header of a safetensors file."""
    try:
        grid, heads = tuple(json.loads(header["grid"])), json.loads(header["num_heads"])
    except (ValueError, TypeError, RecursionError):
        grid, heads = (), 0
    if len(grid) not in (2, 3) or any(type(side) is not int or not 0 < side < 2**16 for side in (*grid, heads)):
        raise ValueError(f"weights {source} are damaged: their header has no grid of whole numbers and number of heads")
    return grid, heads


def _choose(content: dict[str, Any], ema: bool, weights: Weights) -> dict[str, Any]:
    """The state dict in the content of a file."""
    raw = next((key for key in _KEYS if isinstance(content.get(key), Mapping)), None)
    averaged = next((key for key in _AVERAGED_KEYS if isinstance(content.get(key), Mapping)), None)
    if "current_model_state" in content:  # Lightning's own average puts the raw weights there
        raw, averaged = "current_model_state", "state_dict"
    chosen, other = (averaged, raw) if ema and averaged else (raw, averaged)
    if chosen is None:
        return content
    if other is not None:
        weights.dropped[f"{other} ({len(content[other])} tensors)"] = _taken(ema)
    return dict(content[chosen])


def _taken(ema: bool) -> str:
    return "the averaged weights were taken" if ema else "the raw weights were taken"


def _without_prefixes(
    state: Mapping[str, Any], ema: bool, lightning: bool, dropped: dict[str, str]
) -> dict[str, Tensor]:
    """Tensors by names without wrappers; of raw and averaged weights those that `ema` asks for."""
    clean: dict[str, Any] = {}
    for name, value in state.items():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        clean[name] = value
    for name in [name for name in clean if name.rpartition(".")[2] == "n_averaged"]:
        dropped[name] = "a counter of the average"
        del clean[name]
    averaged = next((p for p in _AVERAGED_PREFIXES if any(name.startswith(p) for name in clean)), None)
    if averaged is not None:
        for name in [name for name in clean if name.startswith(averaged) != ema]:
            dropped[name] = _taken(ema)
            del clean[name]
        if ema:
            clean = {name.removeprefix(averaged): value for name, value in clean.items()}
    if lightning and any(name.startswith("model.") for name in clean):
        for name in [name for name in clean if not name.startswith("model.")]:
            dropped[name] = "of the task, not of its model"
            del clean[name]
    while prefix := next((p for p in _PREFIXES if clean and all(name.startswith(p) for name in clean)), None):
        clean = {name.removeprefix(prefix): value for name, value in clean.items()}
    return {name: value for name, value in clean.items() if isinstance(value, Tensor)}


def with_facts(weights: Weights, hparams: Mapping[str, Any] | None) -> Weights:
    """Adds grid and number of heads from the hyper-parameters of a Lightning checkpoint.

    Raises:
        ValueError: If these are not sizes of a model; in one line.
    """
    if hparams and hparams.get("name") in MODELS:
        given = {key: hparams[key] for key in ("img_size", "num_frames") if hparams.get(key) is not None}
        args = {**MODELS[hparams["name"]][1], **given, **(hparams.get("args") or {})}
        try:
            size, patch = to_2tuple(args["img_size"]), to_2tuple(args["patch_size"])
            if "tubelet_size" in args:
                size, patch = (args["num_frames"], *size), (args["tubelet_size"], *patch)
            weights.grid, weights.num_heads = grid_of(size, patch, "model"), int(args["num_heads"])
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{weights.source} does not describe a model: {error}") from error
    return weights
