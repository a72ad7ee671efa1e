"""Models out of files: the file says what to build."""

from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from lookupvit.checkpoints.contents import OWN_ARGUMENTS, Contents, is_exported
from lookupvit.model.weights import load_weights
from lookupvit.model.weights_file import read_weights
from lookupvit.model.zoo import create_model, model_arguments

# Of a task's hyper-parameters, what goes along with the model's arguments when the model is written again.
_TASK_OPTIONS = ("loss", "eval_head")


def load_model(source: str | Path, *, ema: bool = True, verbose: bool = False, **kwargs: Any) -> nn.Module:
    """Builds the model that a file holds, with its weights, in evaluation mode.

    Args:
        source: a checkpoint that `lookupvit fit` wrote, a folder that `save_pretrained` wrote, or the safetensors of
            one.
        ema: averaged weights where a checkpoint has both.
        verbose: print what became of each tensor.
        **kwargs: arguments in place of the file's, such as `img_size` or `compressed_size`; weights are resized, see
            `load_weights`.

    Returns:
        the model; its `class_names`, `pixels`, `trained_sizes` and `scores` are set where the file says them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, does not say which model it holds, or does not fit the arguments; in one line.
    """
    path = Path(source).expanduser()
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
    load_weights(model, weights, verbose=verbose)
    describe(model, contents)
    return model.eval()


def build_model(contents: Contents, **kwargs: Any) -> nn.Module:
    """The model that a file names, with first weights.

    Args:
        contents: from `read_contents`.
        **kwargs: arguments in place of the file's.

    Raises:
        ValueError: if the file does not say which model it holds, or says what does not exist; in one line.
    """
    if contents.name is None:
        raise ValueError(f"{contents.source} does not say which model it holds")
    hyper, known = contents.hyper_parameters, model_arguments(contents.name)
    given = {key: hyper[key] for key in OWN_ARGUMENTS if hyper.get(key) is not None and key in known}
    if "compressed_size" not in given and hyper.get("compressed_sizes"):
        given["compressed_size"] = max(hyper["compressed_sizes"], key=prod)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return create_model(contents.name, **{**contents.arguments, **given, **kwargs})


def describe(model: nn.Module, contents: Contents) -> None:
    """Notes on a model what its file says, so that every format that it is written to says it too."""
    if contents.class_names is not None and len(contents.class_names) == model.num_classes:
        model.class_names = contents.class_names
    model.pixels, model.trained_sizes, model.scores = contents.pixels, contents.trained_sizes, contents.scores
    options = {key: contents.hyper_parameters.get(key) for key in _TASK_OPTIONS}
    model.task_options = {key: value for key, value in options.items() if value is not None}
    if contents.pixels is not None:
        model.note_processor()
