"""Checks of the arguments of models; each error is one line that names the argument, the limit and the remedy."""

import math
import warnings

REUSES = ("transpose", "mean", "renormalize", "fresh")
TRANSPOSED = ("transpose", "mean")  # the way back takes A as it stands after the softmax over N, up to a factor
CROSS_NORMS = ("input", "projection")
PATHS = ("auto", "plain", "absorbed", "tiled")
RESIDUAL_INITS = ("default", "zero")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value`; raises a one-line ValueError that lists the `choices` of option `name`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(choices)}")
    return value


def check_path(path: str, reuse: str) -> str:
    """Returns the `path`; raises a one-line ValueError if it does not exist or does not go with the `reuse`.

    Old checkpoints and configurations may have the path "measured", which no longer exists. It counts as "auto".
    """
    if path == "measured":
        warnings.warn("path='measured' is no more: it counts as path='auto', which is the same function", stacklevel=3)
        path = "auto"
    check_choice("path", path, PATHS)
    if path == "tiled" and reuse not in TRANSPOSED:
        raise ValueError(f"path='tiled' does not work with reuse={reuse!r}, which needs all of A: use path='auto'")
    return path


def check_residual_init(value: str | float) -> float | None:
    """The first value of LayerScale that `residual_init` asks for, or None where it asks for no LayerScale.

    Raises:
        ValueError: For anything but "default", "zero" or a positive number, in one line.
    """
    if value in RESIDUAL_INITS:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(
            f"residual_init={value!r} is not known: choose one of {', '.join(RESIDUAL_INITS)}, or a positive number "
            "such as 1e-5, with which LayerScale begins"
        )
    return float(value)


def check_positive(**values: int) -> None:
    """Raises a one-line ValueError for a named value that is no positive integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is no positive integer: give a whole number from 1 on")


def check_heads(dim: int, num_heads: int) -> None:
    """Raises a one-line ValueError unless both are positive integers and the heads divide the width."""
    check_positive(embed_dim=dim, num_heads=num_heads)
    if dim % num_heads:
        lower = math.gcd(dim, num_heads)
        raise ValueError(f"num_heads={num_heads} does not divide embed_dim={dim}: choose a divisor, such as {lower}")


def check_ratios(**values: float) -> None:
    """Raises a one-line ValueError for a named width, relative to that of the tokens, that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value!r} is not positive: it is a hidden width over embed_dim, such as 4")
