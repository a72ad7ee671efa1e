"""The metric by which the best checkpoint is chosen, and the name of its file: both follow the task."""

from importlib import import_module

from lookupvit import tasks
from lookupvit.tasks.base import Task
from lookupvit.trust import named_classes


def defaults(task: type[Task]) -> dict[str, str]:
    """Defaults of `--checkpoint.*` for a task: its metric, and whether higher is better."""
    key, mode = task.monitor
    name = f"epoch{{epoch:03d}}-{key.rpartition('/')[2]}_{{{key}:.4f}}"
    return {"checkpoint.monitor": key, "checkpoint.mode": mode, "checkpoint.filename": name}


def task_of(args: list[str]) -> type[Task]:
    """The task that the arguments name, in options or configuration files; the last one counts, `Task` if none does."""
    named = named_classes("model", args)
    module, _, name = str(named[-1] if named else "").rpartition(".")
    task = getattr(tasks, name, None)
    if task is None and module:
        try:
            task = getattr(import_module(module), name, None)
        except ImportError:  # the parser has a better message
            task = None
    return task if hasattr(task, "monitor") else Task
