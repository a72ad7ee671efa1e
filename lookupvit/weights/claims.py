"""Whether a file can hold the model that it describes, asked before any memory is taken for that model."""

from collections.abc import Callable

import torch
from torch import nn

_SLACK = 2**26  # parameters that a model may have beyond what its file holds: other classes, another image size


def check_parameters(build: Callable[[], nn.Module], held: int, source: str) -> None:
    """Compares the number of parameters of the described model with what the file holds.

    Args:
        build: Builds the described model; it is called on the meta device, which allocates no memory.
        held: Number of parameters that the file holds, or its bytes as their upper limit.
        source: What to call the file in messages.

    Raises:
        ValueError: If the description builds no model, or one that is much larger than the file; one line.
    """
    try:
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in build().parameters())
    except ValueError:
        raise
    except Exception as error:  # arguments of another kind than expected raise whatever they meet first
        raise ValueError(f"{source} does not describe a model: {type(error).__name__}: {error}") from error
    if described > 2 * held + _SLACK:
        raise ValueError(
            f"{source} describes a model of {described:,} parameters and holds at most {held:,}: give another file"
        )
