from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lookupvit import trust

_SLACK = 2**26  # parameters that a model may have beyond what its file holds: other classes, another image size


def check_described(cls: type[nn.Module], arguments: Mapping[str, Any], held: int, source: str) -> None:
    """As `check_claims`, of a folder whose configuration has the arguments of a class.

    Args:
        cls: Of the model.
        arguments: It would be built with.
        held: Bytes of its weights.
        source: What to call the folder.

    Raises:
        ValueError: If they do not fit each other; one line.
    """
    trust.check_plain(dict(arguments), f"{source}: its config.json")
    try:
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in cls(**arguments).parameters())
    except ValueError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{source} does not describe a model: {type(error).__name__}: {error}") from error
    if described > 2 * held + _SLACK:
        raise ValueError(
            f"{source} describes a model of {described:,} parameters and its weights are of {held:,} bytes"
        )
