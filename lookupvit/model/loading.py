"""Models out of files: the file says what to build."""

from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from lookupvit.model.weights import load_weights
from lookupvit.model.weights_file import read_weights
from lookupvit.model.zoo import create_model, model_arguments, model_classes
from lookupvit.trust import read_json

# Of a task's hyper-parameters, those that are its model's arguments.
_GIVEN = ("num_classes", "img_size", "num_frames", "compressed_size")


def load_model(source: str | Path, *, ema: bool = True, verbose: bool = False, **kwargs: Any) -> nn.Module:
    """Builds the model that a file holds, with its weights, in evaluation mode.

    Args:
        source: a checkpoint that `lookupvit fit` wrote, or a folder that `save_pretrained` wrote.
        ema: averaged weights where a checkpoint has both.
        verbose: print what became of each tensor.
        **kwargs: arguments in place of the file's, such as `img_size` or `compressed_size`; weights are resized, see
            `load_weights`.

    Returns:
        the model; its `class_names` are set where the file says them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, does not say which model it holds, or does not fit the arguments; in one line.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, ema, verbose, kwargs)
    weights = read_weights(path, ema)
    hparams = weights.hyper_parameters
    if not hparams or "name" not in hparams:
        raise ValueError(
            f"{path} does not say which model it holds: build one with create_model and use load_weights for this file"
        )
    model = create_model(hparams["name"], **{**_arguments(hparams), **kwargs})
    load_weights(model, weights, verbose=verbose)
    if weights.class_names is not None and len(weights.class_names) == model.num_classes:
        model.class_names = weights.class_names
    return model.eval()


def _from_folder(path: Path, ema: bool, verbose: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        kind = read_json(path / "config.json")["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is no folder of save_pretrained: its config.json names no architecture") from None
    classes = model_classes()
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(f"{path} holds a {kind}, which is none of {', '.join(classes)}")
    return classes[kind].from_pretrained(path, verbose=verbose, **kwargs)


def _arguments(hparams: dict[str, Any]) -> dict[str, Any]:
    known = model_arguments(hparams["name"])
    given = {key: hparams[key] for key in _GIVEN if hparams.get(key) is not None and key in known}
    if "compressed_size" not in given and hparams.get("compressed_sizes"):
        given["compressed_size"] = max(hparams["compressed_sizes"], key=prod)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return {**(hparams.get("args") or {}), **given}
