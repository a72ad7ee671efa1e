"""A file that `predict` was asked for and that cannot be read: it keeps its place, and says what is wrong with it."""

from typing import Any


class Unreadable(str):
    """The name of a file that cannot be read, among the names of a batch; its picture in the batch is a blank one.

    A plain string wherever a name is wanted, so that batches keep their form. `getattr(name, "error", None)` tells it
    from the others.

    Attributes:
        error: what is wrong with the file, in one line.
    """

    error: str

    def __new__(cls, name: str, error: str) -> "Unreadable":  # noqa: D102
        made = super().__new__(cls, name)
        made.error = error
        return made

    def __getnewargs__(self) -> tuple[str, str]:
        """For the way from a loader process to the main one."""
        return str(self), self.error


# What reading a file or changing its size may raise, by the file's fault.
READ_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)


def unreadable(item: Any, error: BaseException) -> Any:
    """The item of a sample, a name or a tuple that ends in one, with that name marked."""
    if isinstance(item, tuple):
        return (*item[:-1], unreadable(item[-1], error))
    text = str(error).split("; ")[0]  # without the remedy, which is of training
    return Unreadable(str(item), " ".join(text.split()) or type(error).__name__)
