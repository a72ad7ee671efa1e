"""Configuration files that build on others: the key `include`, and mappings that merge."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

_SHORT_NAMES = {
    "--budget_gmacs": "--model.budget_gmacs",
    "--budget_ms": "--model.budget_ms",
    "--cascade": "--model.cascade",
    "--untrained_sizes": "--model.untrained_sizes",
    "--output": "--output_dir",  # its name in other commands once
}


def expand_includes(args: list[str]) -> list[str]:
    """Puts the files that a `--config` file includes before it, so that what it says itself wins.

    A file names them as `include: [../base/gpu.yaml, ...]`, relative to itself; they may include others. An argument
    that is a mapping itself (`model.args`) merges with that of the files before, key by key, as on the command line.

    Args:
        args: Command-line arguments.

    Returns:
        The arguments, with one `--config` for each included file, and one after each file for what it merges.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not YAML, or includes itself.
    """
    expanded: list[str] = []
    so_far: dict[str, Any] = {}
    values = iter(args)
    for arg in values:
        if arg in ("-c", "--config"):
            value = next(values, None)
        elif arg.startswith("--config="):
            value = arg.partition("=")[2]
        else:
            expanded.append(arg)
            continue
        if value is None or value.lstrip().startswith("{") or "://" in value:  # nothing, a mapping itself, or a URL
            expanded += [arg] if value is None else ["--config", value]
            continue
        for file, content in _with_included(Path(value), ()):
            expanded += ["--config", str(file)]
            if merged := _merge(so_far, content):  # the parser would take the later file's mapping whole
                expanded += ["--config", json.dumps(merged, default=str)]
    return expanded


def _merge(so_far: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Adds one file to those before it; returns the mappings among the arguments of a class that both have, merged.

    A file that names another class begins anew.
    """
    merged = {}
    for key, value in content.items():
        earlier = so_far.get(key)
        if not isinstance(value, dict) or not isinstance(earlier, dict) or _other_class(earlier, value):
            so_far[key] = value
        else:
            so_far[key] = dict(earlier)
            inner = _merge(so_far[key], value)
            if key == "init_args":
                mappings = {
                    name: so_far[key][name]
                    for name, item in value.items()
                    if isinstance(item, dict) and "class_path" not in item and isinstance(earlier.get(name), dict)
                }
                inner = {**inner, **mappings}
            if inner:
                merged[key] = inner
    return merged


def _other_class(earlier: dict[str, Any], later: dict[str, Any]) -> bool:
    names = [str(mapping["class_path"]).rpartition(".")[2] for mapping in (earlier, later) if "class_path" in mapping]
    return len(set(names)) > 1


def _with_included(file: Path, parents: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """The files that one builds on, in order, and itself last; each with its contents."""
    if file.resolve() in [parent.resolve() for parent in parents]:
        raise ValueError(f"config {file} includes itself, by way of {parents[-1]}: take one of the two includes out")
    if not file.is_file():
        by = f", included by {parents[-1]}," if parents else ""
        raise FileNotFoundError(f"config {file}{by} does not exist: check the path (here is {Path.cwd()})")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"config {file}{where}: this is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config {file} holds no mapping of options: expected keys such as trainer, model, data")
    included = content.get("include") or []
    files = []
    for name in [included] if isinstance(included, str) else included:
        files += _with_included(file.parent / name, (*parents, file))
    return [*files, (file, content)]


def expand_short(args: list[str]) -> list[str]:
    """Arguments with the shorter names of options for inference written out."""
    split = [arg.partition("=") for arg in args]
    return [_SHORT_NAMES.get(name, name) + equals + value for name, equals, value in split]


def option_of(args: list[str], name: str) -> str | None:
    """The last value of `--name` among the arguments."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def join_numbers(args: list[str]) -> list[str]:
    """`--lr -1e-3` as `--lr=-1e-3`: the parser takes a number of this form for an option."""
    joined: list[str] = []
    for arg in args:
        if (
            joined
            and joined[-1].startswith("--")
            and "=" not in joined[-1]
            and re.fullmatch(r"-[\d.]+[eE][+-]?\d+", arg)
        ):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined
