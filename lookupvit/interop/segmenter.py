"""Segmenters from the files that describe them."""

import inspect
from collections.abc import Mapping
from math import prod
from typing import Any

from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.weights.file import Weights
from lookupvit.weights.load import load_weights

_BACKBONE, _HEAD = "features.backbone.", "head."


def segmenter_of(hyper_parameters: Mapping[str, Any], **kwargs: Any) -> Segmenter:
    """The segmenter that hyper-parameters of a `SegmentationTask` describe, with random weights.

    Args:
        hyper_parameters: Of a checkpoint.
        **kwargs: Arguments of the segmenter in place of those; others are arguments of its backbone.

    Raises:
        ValueError: If they do not fit; one line.
    """
    known = inspect.signature(Segmenter).parameters
    given = {key: value for key, value in hyper_parameters.items() if key in known and value is not None}
    if "compressed_size" not in given and hyper_parameters.get("compressed_sizes"):
        given["compressed_size"] = max(hyper_parameters["compressed_sizes"], key=prod)
    given |= {key: value for key, value in kwargs.items() if key in known}
    others = {key: value for key, value in kwargs.items() if key not in known}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Segmenter(**{**given, "args": {**(given.get("args") or {}), **others}})


def load_segmenter(model: Segmenter, weights: Weights, verbose: bool = False) -> None:
    """Loads a segmenter's weights; those of the backbone are fitted to another image size, see `load_weights`.

    Raises:
        ValueError: For weights that do not fit; one line.
    """
    parts = {
        prefix: {name.removeprefix(prefix): value for name, value in weights.state.items() if name.startswith(prefix)}
        for prefix in (_BACKBONE, _HEAD)
    }
    own = Weights(parts[_BACKBONE], weights.source, weights.grid, weights.num_heads, weights.dropped, weights.contents)
    load_weights(model.backbone, own, verbose=verbose)
    try:
        model.head.load_state_dict(parts[_HEAD])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"weights {weights.source} do not fit the head of the segmenter: {reason[:300]}") from error
