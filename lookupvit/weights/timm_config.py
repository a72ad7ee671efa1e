"""What timm wants to know of a model, as plain data: the arguments in a folder's `config.json`."""

from collections.abc import Mapping
from typing import Any

from lookupvit.grid import to_2tuple
from lookupvit.sizes import name_for

_UNKNOWN = 0.5  # mean and standard deviation of each channel, where a model does not say


def pretrained_config(name: str, args: Mapping[str, Any], pixels: Any = None) -> dict[str, Any]:
    """The `pretrained_cfg` of a LookupViT.

    Args:
        name: Name of the model.
        args: The arguments that built it.
        pixels: How its images are prepared, if that is known.
    """
    head = args.get("head", "both")
    heads = ("compressed", "lookup") if head == "both" else (head,)
    size = to_2tuple(args.get("img_size", 224))
    return {
        "architecture": name,
        "input_size": (args.get("in_chans", 3), *size),
        "num_classes": args.get("num_classes", 1000),
        "mean": (_UNKNOWN,) * 3 if pixels is None else tuple(pixels.mean),
        "std": (_UNKNOWN,) * 3 if pixels is None else tuple(pixels.std),
        "interpolation": getattr(pixels, "interpolation", None) or "bicubic",
        "crop_pct": getattr(pixels, "crop_pct", None) or 0.875,
        "fixed_input_size": False,
        "pool_size": None,
        "first_conv": "embed.proj",
        "classifier": tuple(f"heads.{one}.fc" for one in heads),
    }


def timm_config(args: Mapping[str, Any], pixels: Any = None, class_names: list[str] | None = None) -> dict[str, Any]:
    """The entries of `config.json` by which `timm.create_model("local-dir:FOLDER")` builds a LookupViT.

    Args:
        args: The arguments that built it.
        pixels: How its images are prepared, if that is known.
        class_names: Names of its classes, if they are known.
    """
    name = name_for(["LookupViT"], args)
    known = pretrained_config(name, args, pixels)
    labels = {} if class_names is None else {"label_names": class_names}
    return {"architecture": name, "num_classes": known["num_classes"], **labels} | {
        "model_args": dict(args),
        "pretrained_cfg": known,
    }
