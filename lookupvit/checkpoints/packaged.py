"""Trained models that come along with the package, by name: folders of `save_pretrained` in `lookupvit/pretrained/`.

Wherever a checkpoint is accepted, such a name is too; a file or folder of that name in the present folder comes first.
"""

from pathlib import Path

PRETRAINED = Path(__file__).parents[1] / "pretrained"
_WEIGHTS = "model.safetensors"
LIMIT = 4_000_000  # bytes of a model's weights


def list_pretrained() -> list[str]:
    """Names of the models that come along, for `load_model` and wherever the command line takes a checkpoint."""
    return sorted(file.parent.name for file in PRETRAINED.glob(f"*/{_WEIGHTS}"))


def located(source: str | Path) -> Path:
    """The folder of a model that comes along, if `source` is its name and nothing else has it; else its own path."""
    path = Path(source).expanduser()
    return path if path.exists() or str(source) not in list_pretrained() else PRETRAINED / str(source)


def known() -> str:
    """For an error about a path that does not exist: the names that would do; "" if no model came along."""
    names = list_pretrained()
    return f", or the name of a model that comes along: {', '.join(names)}" if names else ""
