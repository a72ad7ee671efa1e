"""Configuration files that build on others: the key ``include``."""

import re
from pathlib import Path

import yaml


def expand_includes(args: list[str]) -> list[str]:
    """Puts the files that a ``--config`` file includes before it, so that what it says itself wins.

    A file names them as ``include: [../base/gpu.yaml, ...]``, relative to itself; they may include others.

    Args:
        args: Command-line arguments.

    Returns:
        The arguments, with one ``--config`` for each included file.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not YAML, or includes itself.
    """
    expanded: list[str] = []
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
        for file in _with_included(Path(value), ()):
            expanded += ["--config", str(file)]
    return expanded


def _with_included(file: Path, parents: tuple[Path, ...]) -> list[Path]:
    """The files that one builds on, in order, and itself last."""
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
    return [*files, file]


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
