"""Segmenters and detectors from the files that describe them."""

import inspect
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from lookupvit.checkpoints.contents import DETECTION, SEGMENTATION
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.weights.file import Weights
from lookupvit.weights.load import load_weights

# By the last part of the task's name.
DENSE: dict[str, type[nn.Module]] = {SEGMENTATION: Segmenter, DETECTION: Detector}


def dense_of(kind: type[nn.Module], hyper_parameters: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """The model that hyper-parameters of a `SegmentationTask` or a `DetectionTask` describe, with random weights.

    Args:
        kind: `Segmenter` or `Detector`.
        hyper_parameters: Of a checkpoint.
        **kwargs: Arguments of the model in place of those; others are arguments of its backbone.

    Raises:
        ValueError: If they do not fit; one line.
    """
    known = inspect.signature(kind).parameters
    given = {key: value for key, value in hyper_parameters.items() if key in known and value is not None}
    if "compressed_size" not in given and hyper_parameters.get("compressed_sizes"):
        given["compressed_size"] = max(hyper_parameters["compressed_sizes"], key=prod)
    given |= {key: value for key, value in kwargs.items() if key in known}
    others = {key: value for key, value in kwargs.items() if key not in known}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return kind(**{**given, "args": {**(given.get("args") or {}), **others}})


def load_dense(model: nn.Module, weights: Weights, verbose: bool = False) -> None:
    """Loads a segmenter's or detector's weights; those of the backbone are fitted to another image size.

    Raises:
        ValueError: For weights that do not fit; one line.
    """
    prefix = next(name for name, part in model.named_modules() if part is model.backbone) + "."
    state = weights.state
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    own = Weights(backbone, weights.source, weights.grid, weights.num_heads, weights.dropped, weights.contents)
    load_weights(model.backbone, own, verbose=verbose)
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    try:
        missing, unexpected = model.load_state_dict(rest, strict=False)
        missing = [name for name in missing if not name.startswith(prefix)]
        reason = f"missing {missing[:3]}, not known {unexpected[:3]}" if missing or unexpected else None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
    if reason is not None:
        raise ValueError(f"weights {weights.source} do not fit the heads of the {type(model).__name__}: {reason}")
