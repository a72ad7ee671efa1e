"""Repeats a read that failed, as it may for a moment on a network file system; each wait is longer than the last."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Errors that may pass by themselves. Those of a missing, forbidden or damaged file do not.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "ECONNRESET", "EHOSTDOWN", "EINTR", "EIO", "ENETUNREACH", "EREMOTEIO", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
)


def with_retries(read: Callable[[], T], attempts: int = 5, wait: float = 0.1) -> T:
    """Calls `read`, again after each transient `OSError`, and returns what it returns.

    Args:
        read: Opens and reads from the start each time.
        attempts: Number of attempts; the error of the last one is raised.
        wait: Seconds before the second attempt, doubled before each further one: by default 1.5 seconds in all.
    """
    for attempt in range(attempts):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT or attempt == attempts - 1:
                raise
            time.sleep(wait * 2**attempt)
    raise ValueError(f"attempts must be at least 1, got {attempts}")
