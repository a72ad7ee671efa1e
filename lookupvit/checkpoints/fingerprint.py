"""A short fingerprint of weights, by which a cascade's file names the model that it belongs to."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SAMPLES = 32  # evenly spread elements of each tensor; a training step changes at least one of them


def fingerprint(state: Mapping[str, Any]) -> str:
    """A hash of a model's weights: of each tensor's name and shape, and of some of its values in float32.

    The same for the same weights on every device and in every format that keeps their type.

    Args:
        state: Tensors by name, as in `model.state_dict()`. If names have the prefix "model." of a task, it is removed,
            and names without it are left out.

    Returns:
        16 hexadecimal digits.
    """
    if any(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            continue
        count = value.numel()
        places = torch.arange(min(_SAMPLES, count), device=value.device) * count // max(1, min(_SAMPLES, count))
        values = value.detach().reshape(-1)[places].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
