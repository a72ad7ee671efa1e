"""One readable line out of an error that a user made."""

import argparse
import difflib
import errno
import re
from traceback import walk_tb

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from lookupvit.trust import printable
from lookupvit.writing import causes

# What a user can cause and mend. Anything else is a bug and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,  # a path or a disk
    argparse.ArgumentError,
    MisconfigurationException,
    OmegaConfBaseException,
)

# What Lightning's loggers say of a package that they need.
_NOT_INSTALLED = r"Requirement '?([\w.-]+).*not met|`([\w.-]+)` logger which is not installed"
_OF_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
# What libraries say without a remedy.
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

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a path but")
_TYPES = {"NoneType": "null", "str": "text", "tuple": "a list", "list": "a list", "dict": "a mapping"}


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


def unwrapped(error: BaseException) -> BaseException:
    """What an `__init__` raised, bugs too, out of the errors that the parser wraps it in."""
    while error.__cause__ is not None and error.__traceback__ is not None:
        frame = list(walk_tb(error.__traceback__))[-1][0]
        if not frame.f_globals.get("__name__", "").startswith("jsonargparse"):
            break
        error = error.__cause__
    return error


def explain(message: str, parser: ArgumentParser | None = None, classes: dict[str, list[str]] | None = None) -> str:
    """The line that is wrong, out of the parser's dump of everything it tried.

    Args:
        message: Text of the parser's error.
        parser: The parser of the subcommand, whose options are proposed in place of a misspelt one.
        classes: Short names of the classes that fit a key, such as ``{"data": ["DemoDataModule"]}``.
    """
    options = sorted({action.dest for action in parser._actions} - {"help"}) if parser else []
    if found := re.search(r"unrecognized arguments: (.*)", message, re.DOTALL):
        name = found[1].split()[0].split("=")[0]
        if not name.startswith("-"):
            return f"{name!r} belongs to no option: an option starts with --, a list of files is quoted"
        return _unknown(name.lstrip("-"), options)
    if found := re.search(r"does not accept option '([^']+)'", message):
        return _unknown(found[1], options)
    if found := re.search(r"arguments are required: (?:\w+\.)?(\w+)$", message):
        return f"--{found[1]} is missing: give it, or a --config that has it{_choices(found[1], classes)}"

    keys, class_path, leaf, types, depth = [], "", "", [], 0
    for raw in message.splitlines():
        line = re.sub(r"^\s*(- )?", "", raw)
        if found := re.match(r'Parser key "([^"]+)":\s*(.*)', line):
            if types or leaf:
                break
            keys.append(found[1])
            line = found[2]
        if not line or line.startswith(_NOISE):
            if types and line.startswith("Given value type"):
                break
            continue
        if found := re.match(r"Problem with given class_path '([^']+)':", line):
            class_path = found[1]
        elif found := re.match(r"Expected a (<class '[\w.]+'>|typing\.Literal\[.*\])", line):
            if types and len(raw) - len(line) != depth:  # of another union, further out
                break
            depth = len(raw) - len(line)
            types.append(_type_name(found[1]))
        elif not types:
            leaf = line
            break
    key = ".".join(keys)
    if types:
        given = re.search(r"(?:Got value|Given value): (.*)", message)
        return f"--{key}: expected {' or '.join(dict.fromkeys(types))}, got {given[1] if given else '?'}"
    if found := re.match(r"Option '([^']+)' is not accepted", leaf):
        return _unknown(f"{key}.{found[1]}", [f"{key}.{name}" for name in class_options(class_path)], class_path)
    if found := re.match(r"Expected a dot import path string: (.*)", leaf):
        return f"--{key} {found[1]}: there is no such class or file{_choices(key, classes, found[1])}"
    if found := re.match(r"the following arguments are required: (\S+)", leaf):
        name = found[1].rstrip(",").rpartition(".")[2]
        if not class_path:  # of the whole configuration
            return f"--{name} is missing: give it, or a --config that has it{_choices(name, classes)}"
        return f"--{key}.{name} is missing: {class_path.rpartition('.')[2]} needs it"
    text = " ".join((leaf if keys else message).split())
    return f"--{key}: {text}" if key else text


def class_options(class_path: str) -> list[str]:
    """Names of the init arguments of a class, also of those that it hands to its parents."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(__import__(module, fromlist=[name]), name), fail_untyped=False)
    return [action.dest for action in parser._actions if action.dest != "help"]


def _unknown(name: str, options: list[str], class_path: str = "") -> str:
    """A misspelt option, with the nearest right one."""
    owner = f" of {class_path.rpartition('.')[2]}" if class_path else ""
    first, dot, _ = name.partition(".")
    groups = {option.partition(".")[0] for option in options}
    if dot and first not in groups and (close := difflib.get_close_matches(first, groups, n=1, cutoff=0.6)):
        return f"--{name} is not an option: {first!r} is no section of the configuration: did you mean {close[0]!r}?"
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"--{name} is not an option{owner}: did you mean --{close[0]}?"
    if class_path:
        return f"--{name} is not an option{owner}: it has {', '.join(option.rpartition('.')[2] for option in options)}"
    return f"--{name} is not an option: --help lists them"


def _choices(key: str, classes: dict[str, list[str]] | None, given: str = "") -> str:
    names = (classes or {}).get(key, [])
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6) if given else []
    if close:
        return f": did you mean {close[0]}?"
    return f"; known are {', '.join(names)}" if names else ""


def _type_name(text: str) -> str:
    if found := re.match(r"<class '(?:\w+\.)*(\w+)'>", text):
        return _TYPES.get(found[1], found[1])
    return "one of " + text[len("typing.Literal[") : -1]
