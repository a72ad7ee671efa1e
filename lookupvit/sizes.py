"""All named models and their arguments, as plain data that can be listed without importing a model."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
# patch, native image size, default compressed size, sizes offered
SHAPES = (
    (16, 224, (5, 5), tuple(SIZES)),
    (16, 384, (5, 5), tuple(SIZES)),
    (4, 32, (3, 3), ("tiny", "small")),
    (2, 32, (5, 5), ("tiny", "small")),
)


def image_models(family: str) -> dict[str, dict]:
    """Names of a family of image models and the arguments of each, `compressed_size` included."""
    return {
        f"{family}_{size}_patch{patch}_{img_size}": {
            "patch_size": patch,
            "img_size": img_size,
            **SIZES[size],
            "compressed_size": compressed_size,
        }
        for patch, img_size, compressed_size, sizes in SHAPES
        for size in sizes
    }


# patch, tubelet, native image size, frames, default compressed size of joint and of factorised models, sizes offered
_VIDEO_SHAPES = (
    (16, 2, 224, 32, {"joint": (8, 5, 5), "factorised": (5, 5)}, ("tiny", "small", "base", "large")),
    (8, 2, 32, 16, {"joint": (2, 2, 2), "factorised": (2, 2)}, ("tiny", "small")),
)
# Arrangements of space and time; each video size is offered in both.
ARRANGEMENTS = ("joint", "factorised")


def _models() -> dict[str, tuple[str, dict[str, Any]]]:
    models: dict[str, tuple[str, dict[str, Any]]] = {}
    for family, kind in (("lookupvit", "LookupViT"), ("vit", "ViT")):
        for name, args in image_models(family).items():
            if kind == "ViT":
                del args["compressed_size"]
            models[name] = (kind, args)
    for family, kind in (("lookupvivit", "LookupViViT"), ("vivit", "ViViT")):
        for patch, tubelet, img_size, num_frames, compressed_sizes, sizes in _VIDEO_SHAPES:
            for size, arrangement in product(sizes, ARRANGEMENTS):
                args = {"model": arrangement, "patch_size": patch, "tubelet_size": tubelet, "img_size": img_size}
                args |= {"num_frames": num_frames, **SIZES[size]}
                if kind == "LookupViViT":
                    args["compressed_size"] = compressed_sizes[arrangement]
                models[f"{family}_{size}_{arrangement}_patch{patch}x{tubelet}_{img_size}"] = (kind, args)
    return models


# The class and the arguments of each named model.
MODELS = _models()


def name_for(kinds: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The name of the model that shares the most arguments with a configuration.

    Args:
        kinds: Names of the model's class and of its parents, nearest first.
        config: The model's arguments.

    Returns:
        The name; None if none of the classes has a named model.
    """
    kind = next((kind for kind in kinds if any(kind == known for known, _ in MODELS.values())), None)
    same = {name: defaults for name, (known, defaults) in MODELS.items() if known == kind}
    return max(same, key=lambda name: sum(config.get(key) == value for key, value in same[name].items()), default=None)
