"""Builds the model that a file describes, with its weights."""

from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from lookupvit.checkpoints.contents import OWN_ARGUMENTS, Contents, is_exported
from lookupvit.checkpoints.packaged import located
from lookupvit.interop.claims import check_claims
from lookupvit.interop.dense import DENSE, dense_of, load_dense
from lookupvit.model.zoo import create_model, model_arguments
from lookupvit.weights.file import read_weights
from lookupvit.weights.hub import describe
from lookupvit.weights.load import load_weights


def load_model(source: str | Path, *, ema: bool = True, verbose: bool = False, **kwargs: Any) -> nn.Module:
    """Builds the model that a file holds, with its weights, in evaluation mode.

    Args:
        source: A checkpoint that `lookupvit fit` wrote, a folder that `save_pretrained` wrote, the safetensors of
            one, or the name of a model that comes along (`lookupvit.list_pretrained()`).
        ema: Whether to take the averaged weights of a checkpoint that has both.
        verbose: Whether to print what became of each tensor.
        **kwargs: Arguments of the model in place of the file's, such as `img_size` or `compressed_size`; weights are
            resized, see `load_weights`.

    Returns:
        The model. Its `class_names`, `pixels`, `trained_sizes` and `scores` are set if the file states them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, does not say which model it holds, or does not fit the arguments; in one line.
    """
    path = located(source)
    if path.is_dir() and not is_exported(path):
        raise ValueError(f"{path} is no folder of save_pretrained: it has no config.json")
    weights = read_weights(path, ema)
    contents = weights.contents
    if contents.name is None and path.is_dir():
        raise ValueError(f"{path} is no folder of save_pretrained: its config.json names no architecture")
    if contents.name is None:
        raise ValueError(
            f"{path} does not say which model it holds: build one with create_model and use load_weights for this file"
        )
    model = build_model(contents, **kwargs)
    if isinstance(model, tuple(DENSE.values())):
        load_dense(model, weights, verbose)
    else:
        load_weights(model, weights, verbose=verbose)
    describe(model, contents)
    return model.eval()


def build_model(contents: Contents, **kwargs: Any) -> nn.Module:
    """The model that a file describes, with random weights.

    Args:
        contents: From `read_contents`.
        **kwargs: Arguments of the model in place of the file's.

    Raises:
        ValueError: If the file does not say which model it holds, or describes one that cannot be built; in one line.
    """
    if contents.name is None:
        raise ValueError(f"{contents.source} does not say which model it holds")
    if (kind := DENSE.get(str(contents.task).rpartition(".")[2])) is not None:
        check_claims(contents.hyper_parameters, contents.content.get("state_dict", contents.content), contents.source)
        return dense_of(kind, contents.hyper_parameters, **kwargs)
    hyper, known = contents.hyper_parameters, model_arguments(contents.name)
    check_claims(hyper, contents.content.get("state_dict", contents.content), contents.source)
    given = {key: hyper[key] for key in OWN_ARGUMENTS if hyper.get(key) is not None and key in known}
    if "compressed_size" not in given and hyper.get("compressed_sizes"):
        given["compressed_size"] = max(hyper["compressed_sizes"], key=prod)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return create_model(contents.name, **{**contents.arguments, **given, **kwargs})
