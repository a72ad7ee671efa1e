"""Loads weights into a model of another image size, patch, number of frames or classes, and reports each tensor.

Letters: D embed_dim, C channels, (t, y, x) kernel, (t, h, w) token grid.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lookupvit.grid import Size, size_name
from lookupvit.sizes import MODELS
from lookupvit.weights.file import Weights, as_weights, facts, read_weights, save_weights
from lookupvit.weights.resize import fit_kernel, fit_positions, guess_grid
from lookupvit.weights.vit_names import common_name, is_plain_vit, plain_vit

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 10  # rows of errors in the table


@dataclass
class Report:
    """What became of each tensor when weights were loaded.

    Attributes:
        source: Where the weights came from.
        loaded: Names of tensors that were taken unchanged.
        derived: Tensors made from other tensors in a warm start: name to how.
        resized: Tensors fitted to another size: name to the old and the new size.
        initialised: Tensors that the weights lack and that keep the model's initial values: name to the reason.
        unexpected: Tensors of the weights that were left out: name to the reason.
        errors: Tensors that are missing, unknown, or of another shape without a reason: name to the error.
        notes: Other remarks.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows (what happened, tensors, how or why); names that differ only in their block's number share a row."""
        rows = [("loaded", f"{len(self.loaded)} tensors", "")] if self.loaded else []
        for kind in ("derived", "resized", "initialised", "unexpected", "errors"):
            grouped: dict[tuple[str, str], list[str]] = {}
            for name, reason in getattr(self, kind).items():
                key = (re.sub(r"\bblocks\.\d+\.", "blocks.*.", name), reason)
                grouped.setdefault(key, []).append(name)
            label = "ERROR" if kind == "errors" else kind
            for (pattern, reason), names in grouped.items():
                rows.append((label, names[0] if len(names) == 1 else f"{pattern} ({len(names)})", reason))
        return rows

    def show(self, console: "Console | None" = None) -> None:
        """Prints the table with at most ten rows of errors; nothing if no tensor fits, which `check` reports."""
        if self.errors and not (self.loaded or self.derived or self.resized):
            return
        from rich.console import Console  # not needed to load weights: some GPU machines lack it
        from rich.table import Table

        table = Table(title=f"weights from {self.source}", title_justify="left", caption_justify="left")
        for column in ("", "tensors", "how or why"):
            table.add_column(column, overflow="fold")
        rows = self.rows()
        wrong = [row for row in rows if row[0] == "ERROR"]
        for kind, names, reason in [row for row in rows if row not in wrong[_SHOWN:]]:
            table.add_row(kind, names, reason, style="bold red" if kind == "ERROR" else None)
        if len(wrong) > _SHOWN:
            table.add_row("ERROR", f"and {len(wrong) - _SHOWN} more rows", "", style="bold red")
        table.caption = "\n".join(self.notes) or None
        (console or Console()).print(table)

    def check(self) -> None:
        """Raises a one-line ValueError if there are errors."""
        if not self.errors:
            return
        if not (self.loaded or self.derived or self.resized):
            if any(name.startswith("decoder.") for name in self.errors):
                raise ValueError(
                    f"weights {self.source} are of a captioner, and a classifier is wanted here: give a classifier's "
                    "(lookupvit predict and test take captioners)"
                )
            names = [name for name, reason in self.errors.items() if "not in the model" in reason] or list(self.errors)
            raise ValueError(
                f"weights {self.source} are of another kind of model, no tensor of them fits: they have {names[0]} and "
                f"{len(names) - 1} more; expected a LookupViT, or a plain ViT as timm names its weights"
            )
        name, reason = next(iter(self.errors.items()))
        more = f" (and {len(self.errors) - 1} more, see the table)" if len(self.errors) > 1 else ""
        raise ValueError(f"weights {self.source} do not fit the model: {name} {reason}{more}")


__all__ = ["Report", "Weights", "fit_weights", "load_weights", "read_weights", "save_weights"]

_KERNEL, _POSITIONS, _TIME = "embed.proj.weight", "embed.pos_embed", "temporal.pos_embed"
# What changes the function of a LookupViT and the shape of no tensor, with its default.
OPTIONS = {"reuse": "transpose", "cross_norm": "input", "antialias": True}


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor] | Weights,
    *,
    grid: Size | None = None,
    ignore: Sequence[str] = (),
    ema: bool = True,
    inflation: str = "central_frame",
    verbose: bool = True,
) -> Report:
    """Loads weights into a model of the zoo, fits tensors of another size, and prints a table of what it did.

    * Position embeddings are resized to another image size, patch, aspect ratio or number of frames
      (`resize_positions`).
    * Patch kernels are resized to another patch size (`resize_kernel`), and inflated to tubelets
      (`inflate_patch_embed`), so that image weights can start a video model.
    * Classifiers keep their initial values if the number of classes differs.
    * Class and register tokens of a timm ViT are left out, because these models average their tokens.

    The model is changed only if there are no errors.

    Args:
        model: `LookupViT`, `LookupViViT`, `ViT` or `ViViT`.
        source: safetensors, a torch or Lightning checkpoint, a folder of `save_pretrained`, or a state dict.
        grid: Token grid (h, w) or (t, h, w) of the weights' positions, if neither the file nor their number tells it.
        ignore: Patterns such as "heads.*" of names that may be missing or unknown.
        ema: Whether to take the averaged weights of a file that has both.
        inflation: How a patch becomes a tubelet: "central_frame" or "average".
        verbose: Whether to print the table.

    Returns:
        What became of each tensor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a damaged file, one with code in it, or weights that do not fit; in one line.
    """
    reasons = dict.fromkeys(ignore, "ignored as asked")
    new, report = fit_weights(model, as_weights(source, ema), grid=grid, ignore=reasons, inflation=inflation)
    if verbose:
        report.show()
    report.check()
    model.load_state_dict(new)
    return report


def fit_weights(
    model: nn.Module,
    weights: Weights,
    *,
    grid: Size | None = None,
    ignore: Mapping[str, str] | None = None,
    inflation: str = "central_frame",
) -> tuple[dict[str, Tensor], Report]:
    """Returns the state dict that `load_weights` loads and its report; the model stays as it is.

    `ignore` maps patterns of names that may be missing or unknown to the reason.
    """
    report = Report(weights.source, unexpected=dict(weights.dropped))
    state = dict(weights.state)
    _check_kind(model, weights)
    if is_plain_vit(state):
        state, dropped, notes = plain_vit(state, grid or weights.grid, tuple(facts(model)["grid"])[-2:])
        report.unexpected |= dropped
        report.notes += notes
    own = {common_name(name): (name, value) for name, value in model.state_dict().items()}
    given = {common_name(name): value for name, value in state.items()}
    _check_heads(model, weights)
    for name, (theirs, here) in other_options(model, weights).items():
        report.notes.append(f"the weights were trained with {name}={theirs!r}, this model has {here!r}")
    _fit_sizes(model, given, report, grid or weights.grid, inflation)

    result: dict[str, Tensor] = {}
    for name, (full, target) in own.items():
        result[full] = target
        value = given.pop(name, None)
        reason = _reason_to_initialise(name, value, target, state) or _ignored(name, ignore)
        if value is not None and value.shape == target.shape:
            result[full] = value.to(target.dtype)
            if name not in report.resized:
                report.loaded.append(full)
        elif reason:
            report.initialised[full] = reason
        elif value is None:
            report.errors[full] = "is missing in them"
        else:
            report.errors[full] = f"has shape {tuple(value.shape)} in them and {tuple(target.shape)} here"
    for name in given:
        reason = _reason_to_drop(model, name) or _ignored(name, ignore)
        (report.unexpected if reason else report.errors)[name] = reason or "is not in the model"
    return result, report


def _ignored(name: str, ignore: Mapping[str, str] | None) -> str:
    return next((reason for pattern, reason in (ignore or {}).items() if fnmatch(name, pattern)), "")


def _check_kind(model: nn.Module, weights: Weights) -> None:
    """Raises a one-line ValueError for weights of another family of models, or of another depth."""
    inner, kind = getattr(model, "vit", model), type(model).__name__
    theirs = {name.removeprefix("vit.") for name in weights.state}
    crosses, here = "blocks.0.cross.q.weight" in theirs, hasattr(inner.blocks[0], "cross")
    if here and not crosses and is_plain_vit(weights.state):
        raise ValueError(f"weights {weights.source} are a plain ViT's, this model is a {kind}: use warm_start for them")
    if crosses and not here:
        raise ValueError(f"weights {weights.source} are a LookupViT's, this model is a {kind}: build a lookupvit_ one")
    depth = 1 + max((int(name.split(".")[1]) for name in theirs if name.startswith("blocks.")), default=-1)
    if depth not in (0, len(inner.blocks)):
        raise ValueError(
            f"weights {weights.source} have {depth} blocks, this model {len(inner.blocks)}: build it with depth={depth}"
        )


def _check_heads(model: nn.Module, weights: Weights) -> None:
    own = facts(model)["num_heads"]
    if weights.num_heads is not None and weights.num_heads != own:
        raise ValueError(
            f"weights {weights.source} have {weights.num_heads} attention heads, this model {own}: the shapes fit, the "
            f"function would not; build the model with num_heads={weights.num_heads}"
        )


def other_options(model: nn.Module, weights: Weights) -> dict[str, tuple[Any, Any]]:
    """Options of `OPTIONS` in which a LookupViT differs from what the file says of its weights.

    Returns:
        By the option's name: the value that the weights were trained with, and the model's. Empty where the file does
        not say, or either is a plain ViT.
    """
    kind, named = MODELS.get(weights.contents.name, ("", {})) if weights.contents else ("", {})
    if not kind.startswith("Lookup") or not hasattr(model, "antialias"):
        return {}
    theirs, cross = {**OPTIONS, **named, **weights.contents.arguments}, model.blocks[0].cross
    here = {"reuse": cross.reuse, "cross_norm": cross.cross_norm, "antialias": model.antialias}
    return {name: (theirs[name], here[name]) for name in OPTIONS if theirs[name] != here[name]}


def _fit_sizes(model: nn.Module, given: dict[str, Tensor], report: Report, grid: Size | None, inflation: str) -> None:
    """Fits the patch kernel and the positions in `given`, and notes the changes in the report."""
    kernel, positions, time = (given.get(name) for name in (_KERNEL, _POSITIONS, _TIME))
    own = tuple(facts(model)["grid"])
    targets = {common_name(name): value for name, value in model.state_dict().items()}
    if kernel is not None:
        size = tuple(targets[_KERNEL].shape[2:])
        if tuple(kernel.shape[2:]) != size:
            given[_KERNEL] = fit_kernel(kernel, size, inflation)
            report.resized[_KERNEL] = f"patch {size_name(tuple(kernel.shape[2:]))} to {size_name(size)}"
    if kernel is not None and positions is not None:
        known = guess_grid(positions.shape[1], own, kernel.ndim - 2) if grid is None else tuple(grid)
        if known != own:
            given[_POSITIONS] = fit_positions(positions, known, own)
            report.resized[_POSITIONS] = f"grid {size_name(known)} to {size_name(own)}"
    if time is not None and _TIME in targets and time.shape[1] != own[0]:
        given[_TIME] = fit_positions(time, (time.shape[1],), (own[0],))
        report.resized[_TIME] = f"{time.shape[1]} to {own[0]} time indices"


def _reason_to_initialise(name: str, value: Tensor | None, target: Tensor, state: Mapping[str, Tensor]) -> str:
    """Why a tensor of the model may keep its initial values; an empty text if it may not."""
    if name.startswith("heads."):
        if value is None:
            has_any = any(common_name(other).startswith("heads.") for other in state)
            return "" if has_any else "the weights have no classifier"
        if value.shape[1:] == target.shape[1:]:
            return f"{len(value)} classes in the weights, {len(target)} here"
    kernel = next((v for n, v in state.items() if common_name(n) == _KERNEL), None)
    if name.startswith("temporal.") and value is None and kernel is not None and kernel.ndim == 4:
        return "an image model has no time axis"
    return ""


def _reason_to_drop(model: nn.Module, name: str) -> str:
    """Why a tensor of the weights may be left out; an empty text if it may not."""
    if name.startswith("heads.") and model.num_classes == 0:
        return "this model has no classifier"
    heads = getattr(model, "heads", {})
    if "lookup" not in heads and "compressed" in heads:
        last = f"blocks.{model.depth - 1}."
        ends = (f"{last}lookup_mlp.", *(f"{last}cross.{part}_infuse" for part in ("norm", "v", "proj")))
        if name.startswith(("heads.lookup.", "norms.lookup.", *ends)):
            return "this model reads the compressed tokens alone"
    if "compressed" not in heads and "lookup" in heads and name.startswith(("heads.compressed.", "norms.compressed.")):
        return "this model reads the lookup tokens alone"
    return ""
