"""The file of a cascade: whether its entries are what they must be, and whether it belongs to a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit.grid import size_name

if TYPE_CHECKING:
    from lookupvit.analysis.cascade.cascade import Cascade


def checked_values(values: Any) -> dict[str, Any]:
    """The entries of a file that `Cascade` takes, of the right types.

    Raises:
        ValueError: For missing, unknown or ill-typed entries, in one line.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping with sizes and thresholds, got a {type(values).__name__}")
    known = ("sizes", "thresholds", "confidence", "temperatures", "average", "model", "img_size")
    if missing := [key for key in known[:2] if key not in values]:
        raise ValueError(f"{' and '.join(missing)} missing: a cascade is written by Cascade.save")
    if unknown := [key for key in values if key not in (*known, "about")]:
        raise ValueError(f"unknown entry {unknown[0]!r}: known are {', '.join(known)}")
    values = {key: value for key, value in values.items() if key in known}
    for key, kind, what in (("sizes", str, 'text such as "3x3"'), ("thresholds", (int, float), "numbers")):
        _check_list(key, values[key], kind, what)
    _check_list("temperatures", values.get("temperatures", []), (int, float), "numbers")
    if not isinstance(values.get("average", False), bool):
        raise ValueError(f"average={values['average']!r} is neither true nor false")
    if not isinstance(values.get("model", ""), str):
        raise ValueError(f"model={values['model']!r} is not the text of a fingerprint")
    _check_list("img_size", values.get("img_size", []), int, "pixels")
    if len(values.get("img_size", [1, 1])) != 2:
        raise ValueError(f"img_size={values['img_size']!r} is not height and width")
    return values


def check_belongs(cascade: "Cascade", source: str | Path, model: str, img_size: tuple[int, int]) -> str | None:
    """Refuses a model or an image size that the thresholds were not chosen for.

    Args:
        cascade: What runs.
        source: File of this cascade, for the message.
        model: Fingerprint of the model that is to run.
        img_size: Pixels (height, width) that it is to run on.

    Returns:
        A line that says that the cascade does not tell what it belongs to; None where all is well.

    Raises:
        ValueError: In one line, for another model or image size.
    """
    if cascade.model is None or cascade.img_size is None:
        return (
            f"cascade {source} does not say which model and image size its thresholds are of: nothing was compared; "
            "lookupvit sweep writes one that does"
        )
    remedy = "its thresholds mean nothing here: lookupvit sweep CHECKPOINT writes this model's own"
    if cascade.model != model:
        raise ValueError(f"cascade {source} is of another model (weights {cascade.model}, here {model}): {remedy}")
    if cascade.img_size != tuple(img_size):
        raise ValueError(
            f"cascade {source} is of images of {size_name(cascade.img_size)} px, here {size_name(tuple(img_size))}: "
            f"{remedy}"
        )
    return None


def _check_list(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
        raise ValueError(f"{name}={value!r} is not a list of {what}")
