"""Whether a checkpoint fits what it is used with: the data's classes and pixels, compressed sizes, a cascade."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import nn

from lookupvit.analysis.budget import fit_budget
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cascade.file import check_belongs
from lookupvit.checkpoints.contents import Contents, Size, size_text
from lookupvit.checkpoints.fingerprint import fingerprint
from lookupvit.checkpoints.pixels import Pixels, pixels_of


@rank_zero_only
def say(line: str) -> None:
    """Prints one line for the user, beside the results."""
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


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


def choose_size(model: nn.Module, budget: float, contents: Contents, head: str | None, untrained: bool) -> Size:
    """Chooses the largest size within a budget, among those that the model was trained at, and prints the choice.

    Args:
        model: A `LookupViT`.
        budget: Highest cost in GMACs per image.
        contents: What its checkpoint says.
        head: The head that is read; None: all of them.
        untrained: Choose among all sizes with the aspect ratio of the lookup grid instead.

    Raises:
        ValueError: If no size fits; one line.
    """
    candidates = None if untrained else contents.trained_sizes
    kind = "compressed size" if candidates is None else "trained compressed size"
    try:
        fit = fit_budget(model, gmacs=budget, candidates=candidates, head=head, kind=kind)
    except ValueError as error:
        if candidates is None:
            raise
        raise ValueError(f"{error}; or take a size that was not trained with --untrained_sizes true") from None
    warning = "Warning: " if contents.trained_sizes is None or contents.untrained([fit.size]) else ""
    say(
        f"{warning}{size_text(fit.size)} is the largest {kind} for {budget:g} GMACs per image: it costs "
        f"{fit.macs / 1e9:.4g}; {contents.about(fit.size)}"
    )
    return fit.size


def say_untrained(contents: Contents, sizes: Sequence[Size | None]) -> None:
    """Prints a warning of the sizes that will run although the model was not trained at them."""
    if untrained := contents.untrained(sizes):
        trained = ", ".join(map(size_text, contents.trained_sizes))
        say(
            f"Warning: {contents.source} was trained at {trained}, not at {', '.join(map(size_text, untrained))}: "
            "expect worse answers there"
        )


def check_cascade(cascade: Cascade, file: str, checkpoint: dict[str, Any], img_size: tuple[int, int]) -> None:
    """Refuses a cascade of another model or image size; warns if it does not say what it belongs to."""
    if "state_dict" not in checkpoint:  # sharded weights are read by their strategy
        return
    if line := check_belongs(cascade, file, fingerprint(checkpoint["state_dict"]), img_size):
        say(f"Warning: {line}")
