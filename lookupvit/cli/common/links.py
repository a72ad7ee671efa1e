"""Sizes that are set once, in the data, and flow to the model."""

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

LINKED = ("num_classes", "img_size")
FRAMES = "num_frames"  # likewise for clips; other data and models have no such option


def add(parser: LightningArgumentParser) -> None:
    """Hands what every DataModule has to the model, once the DataModule is there."""
    for name in LINKED:
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")


def link_frames(data: dict[str, Any], model: dict[str, Any]) -> None:
    """Hands the data's number of frames to a model that has the option.

    Args:
        data: Init arguments.
        model: Init arguments; changed in place.

    Raises:
        ValueError: If the model was given another number.
    """
    frames = data.get(FRAMES)
    if frames is None or FRAMES not in model:
        return
    if model[FRAMES] not in (None, frames):
        raise ValueError(
            f"--model.{FRAMES} {model[FRAMES]} contradicts the data's {frames}: set --data.{FRAMES} instead"
        )
    model[FRAMES] = frames


def check(model: dict[str, Any], data: LightningDataModule) -> None:
    """Raises a ValueError if the model's init arguments, as the user gave them, contradict the data."""
    for name in LINKED:
        asked, linked = model.get(name), getattr(data, name, None)
        if asked is None:
            continue
        expected = list(linked) if isinstance(linked, (list, tuple)) else [linked]
        given = list(asked) if isinstance(asked, (list, tuple)) else [asked] * len(expected)
        if given != expected:
            raise ValueError(f"--model.{name} {asked} contradicts the data's {linked}: set --data.{name} instead")
