"""Named models: `create_model("lookupvit_base_patch16_224")`, and a plain ViT of every size under `vit_...`.

Video: `lookupvivit_base_joint_patch16x2_224` and `lookupvivit_base_factorised_...`, and a ViViT of each: `vivit_...`.
"""

import difflib
import inspect
from fnmatch import fnmatch
from itertools import product

from torch import nn

from lookupvit.model.backbone import LookupViT
from lookupvit.model.baseline import ViT
from lookupvit.model.temporal import MODELS
from lookupvit.model.video import LookupViViT
from lookupvit.model.video_baseline import ViViT

_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
# patch, native image size, default compressed size, sizes offered
_SHAPES = (
    (16, 224, (5, 5), tuple(_SIZES)),
    (16, 384, (5, 5), tuple(_SIZES)),
    (4, 32, (3, 3), ("tiny", "small")),
    (2, 32, (5, 5), ("tiny", "small")),
)
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
        for patch, img_size, compressed_size, sizes in _SHAPES:
            for size in sizes:
                args = {"patch_size": patch, "img_size": img_size, **_SIZES[size]}
                if cls is LookupViT:
                    args["compressed_size"] = compressed_size
                models[f"{family}_{size}_patch{patch}_{img_size}"] = (cls, args)
    for family, cls in _VIDEO_FAMILIES.items():
        for patch, tubelet, img_size, num_frames, compressed_sizes, sizes in _VIDEO_SHAPES:
            for size, model in product(sizes, MODELS):
                args = {"model": model, "patch_size": patch, "tubelet_size": tubelet, "img_size": img_size}
                args |= {"num_frames": num_frames, **_SIZES[size]}
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
