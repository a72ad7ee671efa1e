"""The metric by which the best checkpoint is chosen, and the name of its file: both follow the task."""

from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lookupvit import tasks
from lookupvit.tasks.base import Task


def defaults(task: type[Task]) -> dict[str, str]:
    """Defaults of `--checkpoint.*` for a task: its metric, and whether higher is better."""
    key, mode = task.monitor
    name = f"epoch{{epoch:03d}}-{key.rpartition('/')[2]}_{{{key}:.4f}}"
    return {"checkpoint.monitor": key, "checkpoint.mode": mode, "checkpoint.filename": name}


def task_of(args: list[str]) -> type[Task]:
    """The task that the arguments name, in options or configuration files; the last one counts, `Task` if none does."""
    found: Any = None
    for place, arg in enumerate(args):
        option, given, value = arg.partition("=")
        value = value if given else "".join(args[place + 1 : place + 2])
        if option in ("--model", "--model.class_path"):
            found = value
        elif option in ("-c", "--config"):
            model = _mapping(value).get("model")
            found = (model.get("class_path") if isinstance(model, dict) else model) or found
    module, _, name = str(found).rpartition(".")
    task = getattr(tasks, name, None)
    if task is None and module:
        try:
            task = getattr(import_module(module), name, None)
        except ImportError:  # the parser has a better message
            task = None
    return task if hasattr(task, "monitor") else Task


def _mapping(config: str) -> dict[str, Any]:
    """A configuration, given as a file or as itself; empty where the parser will report a mistake."""
    try:
        text = config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
