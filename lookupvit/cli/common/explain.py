"""One line out of what jsonargparse says of arguments that do not fit.

Its message lists everything that it tried, a key within a key, over tens of lines; the error has no other parts than
this text. The line that is wrong is looked for in it, and the nearest right name is proposed.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from importlib import import_module

from jsonargparse import ArgumentParser

# Lines of the message that say nothing of the mistake.
_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a path but")
_TYPES = {"NoneType": "null", "str": "text", "tuple": "a list", "list": "a list", "dict": "a mapping"}


def explain(message: str, parser: ArgumentParser, classes: Mapping[str, Collection[str]]) -> str:
    """The line that is wrong, out of the parser's dump of everything it tried.

    Args:
        message: Text of the parser's error.
        parser: The parser of the subcommand, whose options are proposed in place of a misspelt one.
        classes: Short names of the classes that fit a key, such as `{"data": ["DemoDataModule"]}`.
    """
    options = sorted({action.dest for action in parser._actions} - {"help"})
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
    parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
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


def _choices(key: str, classes: Mapping[str, Collection[str]], given: str = "") -> str:
    names = classes.get(key, [])
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6) if given else []
    if close:
        return f": did you mean {close[0]}?"
    return f"; known are {', '.join(names)}" if names else ""


def _type_name(text: str) -> str:
    if found := re.match(r"<class '(?:\w+\.)*(\w+)'>", text):
        return _TYPES.get(found[1], found[1])
    return "one of " + text[len("typing.Literal[") : -1]
