"""Named models: `create_model("lookupvit_base_patch16_224")`, and a plain ViT of every size under `vit_...`.

Video: `lookupvivit_base_joint_patch16x2_224` and `lookupvivit_base_factorised_...`, and a ViViT of each: `vivit_...`.
"""

import difflib
import inspect
from fnmatch import fnmatch

from torch import nn

from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT
from lookupvit.model.vit import ViT
from lookupvit.sizes import MODELS

_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (LookupViT, ViT, LookupViViT, ViViT)}
_MODELS = {name: (_CLASSES[kind], arguments) for name, (kind, arguments) in MODELS.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, filtered by a shell-style `pattern` such as "lookupvit_*"."""
    return sorted(name for name in _MODELS if fnmatch(name, pattern))


def model_arguments(name: str) -> tuple[str, ...]:
    """Arguments that the named model takes.

    Raises:
        ValueError: For an unknown name, in one line.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return tuple(inspect.signature(_MODELS[name][0]).parameters)


def create_model(name: str, **kwargs) -> nn.Module:
    """Builds a model by name.

    Args:
        name: One of `list_models()`.
        **kwargs: Arguments of the model's class, in place of those that the name stands for; None leaves the latter.

    Returns:
        The model, randomly initialised.

    Raises:
        ValueError: For an unknown name or argument, in one line that lists what there is.

    Example:
        >>> model = create_model("lookupvit_tiny_patch4_32", num_classes=10, compressed_size=(5, 5), depth=2)
        >>> model.compressed_size, sum(p.numel() for p in model.parameters()) > 0
        ((5, 5), True)
    """
    known = model_arguments(name)
    cls, defaults = _MODELS[name]
    given = {key: value for key, value in kwargs.items() if value is not None}
    for key in given:
        if key not in known:
            why = " (only LookupViT has it)" if key in inspect.signature(LookupViT).parameters else ""
            raise ValueError(f"{name} takes no argument {key!r}{why}: known are {', '.join(known)}")
    return cls(**{**defaults, **given})
