"""What a checkpoint or an exported folder may choose: the one home of these rules.

The rules for data are in `datamodules.loading.untrusted`.

A checkpoint may choose a model and data of this project, with plain arguments. It may not choose classes outside the
project, commands, addresses, folders to write to, or values of environment variables. The user may choose all of these,
on the command line or in a YAML file.

To tell the two apart, every text from a checkpoint is marked before it goes through the parser of the command line. A
text that comes out with its mark is the checkpoint's, one without a mark is the user's.
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARK = "\ue000"  # of Unicode's private use: no path and no name has it
MAX_JSON = 2**26  # bytes of a configuration or a cascade
_MAX_VALUES = 100_000
_MAX_DEPTH = 16
# Upper limits of numbers in a stored configuration that decide how many processes or how much memory are used.
_LIMITS = {"num_workers": 512, "prefetch_factor": 4096, "img_size": 8192, "decoder_threads": 256, "num_frames": 2**14}
_LIMITS |= {"depth": 1000, "temporal_depth": 1000, "embed_dim": 2**15, "width": 2**15, "patch_size": 2**12}
_LIMITS |= {"mlp_ratio": 64, "lookup_mlp_ratio": 64, "vocab_size": 2**22, "num_classes": 2**22, "context_length": 2**20}
_LIMITS |= {"in_chans": 2**12, "shuffle_buffer": 2**24}
# Options of a model for which `fit` downloads weights, if the value is a name of timm's and not a file.
_FETCHED = ("teacher", "init_from", "encoder_ckpt")
_WRITTEN = ("feature_cache",)


def read_json(path: Path) -> Any:
    """Reads a small JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or too large; one line.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def printable(text: Any) -> str:
    """A text from a file that is safe to print: control characters, which a terminal would obey, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def is_address(value: str) -> bool:
    """Whether a text is an address or a command instead of a path."""
    return "://" in value or value.lstrip().startswith("pipe:")


def check_plain(value: Any, what: str) -> None:
    """Raises a one-line ValueError unless a value is plain data of a sensible size, without classes or `${...}`."""
    left = [(value, 0, what)]
    for _ in range(_MAX_VALUES):
        if not left:
            return
        item, depth, name = left.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"{what} is nested too deeply")
        if hasattr(item, "as_dict"):  # a namespace of jsonargparse's
            item = vars(item)
        if isinstance(item, Mapping):
            for key, inner in item.items():
                if not isinstance(key, (str, int)):
                    raise ValueError(f"{name} has a key of kind {type(key).__name__}: expected text")
                if key in ("class_path", "init_args") and depth > 0:
                    raise ValueError(f"{name} names a class: a file chooses none, give it on the command line")
                left.append((inner, depth + 1, f"{what}.{key}" if depth == 0 else name))
                _check_number(str(key), inner, name)
        elif isinstance(item, (list, tuple, set)):
            left += [(inner, depth + 1, name) for inner in item]
        elif isinstance(item, str):
            if "${" in item or MARK in item:
                raise ValueError(f"{name} is {_short(item)}: a file reads nothing out of the environment")
            if not item.isprintable():
                raise ValueError(f"{name} is {_short(item)}: a text of control characters")
        elif item is not None and not isinstance(item, (bool, int, float)):
            raise ValueError(f"{name} is a {type(item).__name__}: expected plain data")
    raise ValueError(f"{what} has more than {_MAX_VALUES:,} values")


def _check_number(key: str, value: Any, name: str) -> None:
    limit = _LIMITS.get(key)
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if limit is not None and isinstance(number, (int, float)) and number > limit:
            raise ValueError(f"{name} has {key} {number:,}: a file may ask for {limit:,} at most")


def check_section(key: str, part: Any, known: Mapping[str, type], named: Iterable[str] = ()) -> None:
    """Raises a one-line ValueError unless a file may choose this stored `model` or `data`.

    Args:
        key: `model` or `data`.
        part: `{"class_path": ..., "init_args": {...}}`.
        known: Classes of this project, by their short names.
        named: Classes that the user has named.
    """
    what = f"the checkpoint's {key}"
    if not isinstance(part, Mapping) or not isinstance(part.get("class_path"), str):
        raise ValueError(f"{what} is no class_path with init_args")
    if not isinstance(part.get("init_args", {}), Mapping):
        raise ValueError(f"{what} has init_args that are no mapping")
    path = part["class_path"]
    if class_of(path, known) is None and path not in named:
        raise ValueError(
            f"{what} is of the class {_short(path)}, which is not of this project: a file chooses no code; "
            f"if you trust it, name the class yourself with --{key} CLASS"
        )
    check_plain(part.get("init_args", {}), what)


def class_of(path: str, known: Mapping[str, type]) -> type | None:
    """The class of a class path, if it is one of `known`; nothing is imported.

    Its module may be any of the same package, because the class may have moved since the checkpoint was written.
    """
    package, _, _ = path.partition(".")
    cls = known.get(path.rpartition(".")[2])
    return cls if cls and (path.isidentifier() or package == cls.__module__.partition(".")[0]) else None


def named_classes(key: str, args: list[str]) -> list[str]:
    """Classes that arguments name for `model` or `data`, in options or in files of `--config`; in their order."""
    names: list[str | None] = []
    for arg, after in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = arg.partition("=")
        value = value if equals else after
        if name in (f"--{key}", f"--{key}.class_path"):
            names.append(value)
        elif name in ("--config", "-c"):
            names.append(_named_in(key, value))
    return [name for name in names if name]


def _named_in(key: str, config: str) -> str | None:
    import yaml

    try:
        content = yaml.safe_load(
            config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")
        )
        part = content[key]
        return part if isinstance(part, str) else part["class_path"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):  # the parser will report the error
        return None


def marked(config: dict[str, Any]) -> dict[str, Any]:
    """Marks the texts of a stored configuration, so that they can be told from the user's after parsing."""
    return {
        key: {**part, "init_args": {name: _mark(value) for name, value in part.get("init_args", {}).items()}}
        for key, part in config.items()
    }


def _mark(value: Any) -> Any:
    return f"{MARK}{value}" if isinstance(value, str) else value


def unmarked(text: str) -> str:
    """Removes marks from a text, such as an error of the parser that repeats a value."""
    return text.replace(MARK, "")


def settle(part: Any, key: str, known: Mapping[str, type], fitting: bool) -> set[str]:
    """Removes the marks from the init arguments of a parsed `model` or `data`, and checks those that had one.

    Args:
        part: The parsed section, changed in place.
        key: `model` or `data`.
        known: Classes of this project, by their short names.
        fitting: Whether the command trains.

    Returns:
        Names of the options that the checkpoint set to another value than the class's default.

    Raises:
        ValueError: If the checkpoint chose a value that it may not choose; one line.
    """
    given = (part.get("init_args") if hasattr(part, "get") else None) or {}
    chosen = set()
    for name in list(given.keys() if hasattr(given, "keys") else vars(given)):
        value = given[name]
        if not isinstance(value, str) or not value.startswith(MARK):
            continue
        value = given[name] = value.removeprefix(MARK)
        option = f"--{key}.{name}"
        if is_address(value):
            raise ValueError(
                f"the checkpoint says {option} {_short(value)}: a file chooses no command and no address; if you trust "
                f"it, give {option} yourself, or a local folder"
            )
        if fitting and name in _WRITTEN:
            raise ValueError(
                f"the checkpoint says {option} {_short(value)}: nothing is written where a file says; give {option} "
                "yourself, or null"
            )
        if fitting and name in _FETCHED and not Path(value).expanduser().exists():
            raise ValueError(
                f"the checkpoint says {option} {_short(value)}, which is no file here: a file has nothing fetched; "
                f"give {option} yourself, or null"
            )
        argument = parameter(class_of(part["class_path"], known) or object, name)
        if argument is None or argument.default != value:
            chosen.add(name)
    return chosen


def parameter(cls: type, name: str) -> inspect.Parameter | None:
    """The argument of this name of a class's constructor, or else of a parent's; None if there is none."""
    signatures = (inspect.signature(kind.__init__).parameters for kind in cls.__mro__ if "__init__" in vars(kind))
    return next((options[name] for options in signatures if name in options), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:110]}... ({len(text)} characters)"
