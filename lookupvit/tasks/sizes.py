"""The compressed sizes of a task: which it trains and evaluates, what a budget chooses, and what a checkpoint keeps."""

import contextlib
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from torch import nn

from lookupvit.analysis.budget import largest_size
from lookupvit.checkpoints.contents import TRAINED_SIZES, Contents, contents_of
from lookupvit.model.zoo import model_arguments
from lookupvit.tasks.base import check
from lookupvit.tasks.belonging import choose_size, say_sizes, say_untrained
from lookupvit.tasks.sampling import Size, check_sizes


class Sizes(NamedTuple):
    """The sizes of a task.

    Attributes:
        main: The size of a call that names none; None keeps the model's own.
        trained: Sizes of multi-resolution training; None for a single size.
        evaluated: Sizes that are scored under their own names.
    """

    main: Size | None
    trained: list[Size] | None
    evaluated: list[Size]


def plan_sizes(
    name: str,
    compressed_size: Sequence[int] | None,
    compressed_sizes: Sequence[Sequence[int]] | None,
    size_weights: Sequence[float] | None,
    eval_compressed_sizes: Sequence[Sequence[int]] | None,
    sandwich: bool = False,
) -> Sizes:
    """The sizes that a task's options of these names ask for.

    Raises:
        ValueError: If they do not go together, or the model of this name has no compressed tokens.
    """
    check(
        compressed_sizes is not None or not (size_weights or sandwich),
        "sandwich and size_weights need compressed_sizes: give those too, such as [[3, 3], [5, 5]]",
    )
    trained = None if compressed_sizes is None else check_sizes(compressed_sizes, size_weights)
    evaluated = (trained if eval_compressed_sizes is None else check_sizes(eval_compressed_sizes)) or []
    check(
        not (evaluated or trained) or "compressed_size" in model_arguments(name),
        f"{name} has no compressed tokens: leave compressed_sizes and eval_compressed_sizes out",
    )
    if compressed_size is None and trained:
        compressed_size = max(trained, key=prod)
    return Sizes(tuple(compressed_size) if compressed_size is not None else None, trained, evaluated)


def budgeted_size(
    model: nn.Module, gmacs: float | None, ms: float | None, candidates: list[Size] | None, head: str | None = None
) -> Size | None:
    """The size that a budget in GMACs pays for; None where there is none, or one in ms, which waits for the machine.

    Raises:
        ValueError: If no size fits, or the budgets do not fit the model.
    """
    check(gmacs is None or ms is None, "budget_gmacs and budget_ms are two budgets: give one of them")
    check(
        ms is None or model.compressed_size is not None,
        "budget_ms chooses a compressed size, which a plain ViT does not have: leave it out",
    )
    return None if gmacs is None else largest_size(model, gmacs=gmacs, head=head, candidates=candidates)


def keep_sizes(task: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Keeps the sizes that were trained, and puts the results of `init_from` and `budget_gmacs` in their place."""
    trains = task.trained_sizes is None or task.trainer.state.fn == "fit"
    if task.model.compressed_size is not None:
        sizes = (task.compressed_sizes or [task.model.compressed_size]) if trains else task.trained_sizes
        checkpoint[TRAINED_SIZES] = [list(size) for size in sizes]
    if "hyper_parameters" not in checkpoint:
        return
    hyper = {**checkpoint["hyper_parameters"], "init_from": None}  # the checkpoint's weights replace the first ones
    if hyper.get("budget_gmacs") is not None:
        hyper |= {"budget_gmacs": None, "compressed_size": list(task.model.compressed_size)}
    checkpoint["hyper_parameters"] = hyper


def sizes_of_checkpoint(
    task: LightningModule, checkpoint: dict[str, Any], name: str, head: str | None, run: Sequence[Size]
) -> tuple[Contents, Size | None]:
    """Chooses the size where a budget is given, and else warns of sizes that the checkpoint was not trained at.

    Args:
        task: A task whose model has compressed tokens, outside training.
        checkpoint: That is being loaded.
        name: What to call it in messages.
        head: Head that is evaluated; None for the model's own.
        run: Sizes that will run if no budget is given.

    Returns:
        What the checkpoint says, and the size that the budget chose; None if there is no budget.
    """
    attached = task._trainer is not None
    contents = contents_of(checkpoint, name)
    gmacs, ms = task.hparams.get("budget_gmacs"), task.hparams.get("budget_ms")
    if gmacs is None and ms is None:
        say_untrained(contents, run)
        if attached and not hasattr(task.model, "num_frames"):  # costs are counted of images alone
            say_sizes(task.model, contents, run, head)
        return contents, None
    with contextlib.ExitStack() as stack:
        if ms is not None and attached:  # timed where, and as precisely as, it will run
            task.to(task.trainer.strategy.root_device)
            stack.enter_context(task.trainer.precision_plugin.forward_context())
        untrained = task.hparams.get("untrained_sizes", False)
        return contents, choose_size(task.model, gmacs, ms, contents, head, untrained)
