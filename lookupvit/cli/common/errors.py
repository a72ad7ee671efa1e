"""One readable line out of an error that a user made."""

import argparse
import contextlib
import errno
import re
from collections.abc import Iterator
from traceback import walk_tb

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from lookupvit.trust import printable
from lookupvit.writing import causes

# Errors that a user can cause and mend. Any other error is a bug and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,  # a path or a disk
    argparse.ArgumentError,
    MisconfigurationException,
    OmegaConfBaseException,
)

# Lightning's messages where a logger's package is not installed.
_NOT_INSTALLED = r"Requirement '?([\w.-]+).*not met|`([\w.-]+)` logger which is not installed"
_OF_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
# Messages of libraries that name no remedy, and one that does.
_ANSWERS = (
    (
        r"No supported gpu backend found|CUDAAccelerator.* can not run on your system",
        "--trainer.accelerator: no GPU is visible: add --config configs/base/cpu.yaml, or --trainer.accelerator cpu",
    ),
    (
        r"Trainer\(barebones=True",
        "--trainer.barebones measures raw speed, without logs and checkpoints, which this command is for: leave it out "
        "(lookupvit bench measures speed)",
    ),
)


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of a run that a signal ended after a checkpoint; None of anything else.

    Only rank 0 tells the scheduler: Lightning's launcher takes a child's code for a crash, and kills the rest.
    """
    from lookupvit.callbacks.last import EXIT_REQUEUE, Preempted

    if not isinstance(error, Preempted):
        return None
    return EXIT_REQUEUE if rank_zero_only.rank == 0 else 0


def is_users(error: BaseException) -> bool:
    """Whether an error is a mistake that the user can mend."""
    missing = isinstance(error, ModuleNotFoundError) and re.search(_NOT_INSTALLED, str(error)) is not None
    return missing or isinstance(error, USER_ERRORS)


@contextlib.contextmanager
def raise_cause() -> Iterator[None]:
    """Raises what an `__init__` raised, bugs too, in place of the `ValueError` that the parser wraps around it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise _unwrapped(error) from None


def _unwrapped(error: BaseException) -> BaseException:
    while error.__cause__ is not None and error.__traceback__ is not None:
        frame = list(walk_tb(error.__traceback__))[-1][0]
        if not frame.f_globals.get("__name__", "").startswith("jsonargparse"):  # raised by others: its cause is its own
            break
        error = error.__cause__
    return error


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in causes(error))


def one_line(error: BaseException) -> str:
    """The message of an error in one line; of an error in a data worker, the message that the worker had."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and (found := re.search(_NOT_INSTALLED, text)):
        package = found[1] or found[2]
        return (
            f"--trainer.logger needs the package {package}, which is not installed: pip install {package}, or leave "
            "the option out for TensorBoard"
        )
    for pattern, answer in _ANSWERS:
        if re.search(pattern, text):
            return answer
    if isinstance(error, OSError) and text.startswith("[Errno"):  # as Python words it: a number, a reason, a name
        name = f"{error.filename}: " if error.filename is not None else ""
        what = "" if error.errno not in _OF_DISK else ": make room, or write to another folder"
        return f"{name}{error.strerror}{what}"
    if re.match(r"Caught \w+ in DataLoader worker", text):
        text = re.sub(r"^[\w.]+: ", "", [line for line in text.splitlines() if line and not line.startswith(" ")][-1])
    return printable(" ".join(text.split()))
