"""Named models: `create_model("lookupvit_base_patch16_224")`, and a plain ViT of every size under `vit_...`.

Video: `lookupvivit_base_joint_patch16x2_224` and `lookupvivit_base_factorised_...`, and a ViViT of each: `vivit_...`.
"""

import difflib
import inspect
from collections.abc import Mapping
from fnmatch import fnmatch
from itertools import product
from typing import Any

from torch import nn

from lookupvit.model.backbone import LookupViT
from lookupvit.model.baseline import ViT
from lookupvit.model.sizes import SIZES, image_models
from lookupvit.model.temporal import MODELS
from lookupvit.model.video import LookupViViT
from lookupvit.model.video_baseline import ViViT

_FAMILIES = {"lookupvit": LookupViT, "vit": ViT}
# patch, tubelet, native image size, frames, default compressed size of joint and of factorised models, sizes offered
_VIDEO_SHAPES = (
    (16, 2, 224, 32, {"joint": (8, 5, 5), "factorised": (5, 5)}, ("tiny", "small", "base", "large")),
    (8, 2, 32, 16, {"joint": (2, 2, 2), "factorised": (2, 2)}, ("tiny", "small")),
)
_VIDEO_FAMILIES = {"lookupvivit": LookupViViT, "vivit": ViViT}


def _registry() -> dict[str, tuple[type[nn.Module], dict]]:
    models = {}
    for family, cls in _FAMILIES.items():
        for name, args in image_models(family).items():
            if cls is not LookupViT:
                del args["compressed_size"]
            models[name] = (cls, args)
    for family, cls in _VIDEO_FAMILIES.items():
        for patch, tubelet, img_size, num_frames, compressed_sizes, sizes in _VIDEO_SHAPES:
            for size, model in product(sizes, MODELS):
                args = {"model": model, "patch_size": patch, "tubelet_size": tubelet, "img_size": img_size}
                args |= {"num_frames": num_frames, **SIZES[size]}
                if cls is LookupViViT:
                    args["compressed_size"] = compressed_sizes[model]
                models[f"{family}_{size}_{model}_patch{patch}x{tubelet}_{img_size}"] = (cls, args)
    return models


_MODELS = _registry()


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, filtered by a shell-style `pattern` such as "lookupvit_*"."""
    return sorted(name for name in _MODELS if fnmatch(name, pattern))


def model_arguments(name: str) -> tuple[str, ...]:
    """Arguments that the named model takes.

    Raises:
        ValueError: for an unknown name, in one line.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return tuple(inspect.signature(_MODELS[name][0]).parameters)


def model_classes() -> dict[str, type[nn.Module]]:
    """The classes of the named models, by their own names."""
    return {cls.__name__: cls for cls, _ in _MODELS.values()}


def name_of(model: nn.Module) -> str:
    """The name that is nearest to a model: of its class, and with the most of its arguments."""
    known = model_classes()
    kind = next(cls.__name__ for cls in type(model).__mro__ if known.get(cls.__name__) is cls)
    return name_for(kind, model._hub_mixin_config)


def name_for(kind: str, config: Mapping[str, Any]) -> str | None:
    """The name of a class's model that shares the most arguments with these; None for an unknown class."""
    same = {name: defaults for name, (cls, defaults) in _MODELS.items() if cls.__name__ == kind}
    return max(same, key=lambda name: sum(config.get(key) == value for key, value in same[name].items()), default=None)


def default_argument(name: str, argument: str) -> Any:
    """What a named model passes for an argument; None where it passes nothing, or there is no such model."""
    return _MODELS.get(name, (None, {}))[1].get(argument)


def create_model(name: str, **kwargs) -> nn.Module:
    """Builds a model by name.

    Args:
        name: one of `list_models()`.
        **kwargs: any argument of the named model's class, in place of the named model's; None means the named model's.

    Returns:
        the model, randomly initialised.

    Raises:
        ValueError: for an unknown name or argument, in one line that lists what there is.

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
