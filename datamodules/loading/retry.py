"""Reads that a network file system may fail at for a moment: tried again, after longer and longer waits."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What passes by itself. A missing file, a refused one and a damaged one do not.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "ECONNRESET", "EHOSTDOWN", "EINTR", "EIO", "ENETUNREACH", "EREMOTEIO", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
)


def with_retries(read: Callable[[], T], attempts: int = 5, wait: float = 0.1) -> T:
    """What `read` returns, tried again after a transient `OSError`.

    Args:
        read: Opens and reads from the start each time.
        attempts: In all; the last error passes through.
        wait: Seconds before the second attempt, doubled before each further one: 1.5 seconds in all.
    """
    for attempt in range(attempts):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT or attempt == attempts - 1:
                raise
            time.sleep(wait * 2**attempt)
    raise ValueError(f"attempts must be at least 1, got {attempts}")
