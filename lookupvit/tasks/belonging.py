"""Whether a checkpoint fits what it is used with: the data's classes and pixels, compressed sizes, a cascade."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lookupvit import writing
from lookupvit.analysis.budget import fit_budget
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cascade.file import check_belongs
from lookupvit.analysis.cost import model_macs
from lookupvit.checkpoints.contents import Contents
from lookupvit.checkpoints.fingerprint import fingerprint
from lookupvit.checkpoints.pixels import Pixels, pixels_of
from lookupvit.grid import Size, size_name


@rank_zero_only
def say(line: str) -> None:
    """Prints one line for the user, beside the results."""
    writing.say(line, error=True)


def first_difference(saved: Sequence[str], here: Sequence[str]) -> str | None:
    """A sentence on the first difference between two lists of class names; None where they are equal."""
    if len(saved) != len(here):
        return f"{len(saved)} classes in the checkpoint, {len(here)} in the data"
    for place, (old, new) in enumerate(zip(saved, here, strict=True)):
        if old != new:
            return f"class {place} is {old!r} in the checkpoint and {new!r} in the data"
    return None


def compare_with_data(task: LightningModule, contents: Contents) -> None:
    """Compares a checkpoint's class names and normalisation with those of the data.

    In validation and test with `class_map`, the same names in another order are no difference: `task.class_index` then
    holds the place of each of the data's classes in the checkpoint's order.

    Raises:
        ValueError: If training would go on with other classes; one line.
    """
    data, stage = task.trainer.datamodule, task.trainer.state.fn
    names = None if data is None or stage == "predict" else getattr(data, "class_names", None)
    different = first_difference(contents.class_names, list(names)) if names and contents.class_names else None
    mapped = different and getattr(data, "class_map", None) and sorted(names) == sorted(contents.class_names)
    if mapped and stage in ("validate", "test"):
        task.class_index = torch.tensor([contents.class_names.index(name) for name in names])
        different = None
    if different and stage == "fit":
        raise ValueError(
            f"{contents.source} was trained on other classes: {different}; give its own data, start afresh with "
            "--model.init_from, or name the folders as they are to be called with --data.class_map FILE"
        )
    if different:
        say(
            f"Warning: the classes are not those of {contents.source}: {different}. What follows counts its answers "
            "against other classes, unless --data.class_map FILE says which are the same"
        )
    own, here = pixels_of(contents), None if data is None else Pixels.of_data(data)
    if stage != "fit" and own is not None and here is not None and not own.same_values(here):
        say(f"Warning: images are normalised with {here}; {contents.source} was trained with {own}")
    if stage != "fit" and own is None and here is not None:
        say(f"Warning: {contents.source} does not say how its images were normalised: taken to be {here}")


def choose_size(
    model: nn.Module, gmacs: float | None, ms: float | None, contents: Contents, head: str | None, untrained: bool
) -> Size:
    """Chooses the largest size within a budget, among those that the model was trained at, and prints the choice.

    Args:
        model: A `LookupViT`. For a budget of time it must be on the device, and in the precision, of the run.
        gmacs: GMACs per image.
        ms: Instead, milliseconds per call with one image, measured here and now.
        contents: What its checkpoint says.
        head: Head that is read.
        untrained: Choose among all sizes of the lookup grid's aspect instead.

    Raises:
        ValueError: In one line, if no size fits, or both budgets are given.
    """
    candidates = None if untrained else contents.trained_sizes
    kind = "compressed size" if candidates is None else "trained compressed size"
    try:
        fit = fit_budget(model, gmacs, ms, candidates=candidates, head=head, kind=kind)
    except ValueError as error:
        if candidates is None:
            raise
        raise ValueError(f"{error}; or take a size that was not trained with --untrained_sizes true") from None
    warning = "Warning: " if contents.trained_sizes is None or contents.untrained([fit.size]) else ""
    if ms is None:
        budget, cost = f"{gmacs:g} GMACs per image", f"{fit.macs / 1e9:.4g}"
    else:
        budget = f"{ms:g} ms per call with one image on this machine ({next(model.parameters()).device.type})"
        cost = f"{fit.ms:.4g} ms and {fit.macs / 1e9:.4g} GMACs"
    say(
        f"{warning}{size_name(fit.size)} is the largest {kind} for {budget}: it costs {cost}; "
        f"{contents.about(fit.size)}{_of_pixels(model, contents)}"
    )
    return fit.size


def say_sizes(model: nn.Module, contents: Contents, sizes: Sequence[Size], head: str | None) -> None:
    """Prints for each compressed size that is about to run what it costs, and its score if that is known."""
    for size in dict.fromkeys(sizes):
        gmacs = sum(model_macs(model, model.img_size, size, head=head).values()) / 1e9
        say(f"{size_name(size)}: {gmacs:.4g} GMACs per image; {contents.about(size)}{_of_pixels(model, contents)}")


def _of_pixels(model: nn.Module, contents: Contents) -> str:
    """Says that a known score is of another image size than the present one; empty where it is of the same size."""
    if contents.img_size is None or contents.img_size == tuple(model.img_size):
        return ""
    own, here = (size_name(size) for size in (contents.img_size, model.img_size))
    return f" (that is at {own} px, not at the {here} px here)"


def say_untrained(contents: Contents, sizes: Sequence[Size | None]) -> None:
    """Warns about the sizes that will run although the model was not trained at them."""
    if untrained := contents.untrained(sizes):
        trained = ", ".join(map(size_name, contents.trained_sizes))
        say(
            f"Warning: {contents.source} was trained at {trained}, not at {', '.join(map(size_name, untrained))}: "
            "expect worse answers there"
        )


def check_cascade(cascade: Cascade, file: str, checkpoint: dict[str, Any], img_size: tuple[int, int]) -> None:
    """Refuses a cascade of another model or image size; warns if it does not say what it belongs to."""
    if "state_dict" not in checkpoint:  # sharded weights are read by their strategy
        return
    if line := check_belongs(cascade, file, fingerprint(checkpoint["state_dict"]), img_size):
        say(f"Warning: {line}")
