"""Parameter groups, the optimisers, and the learning rate of each step."""

import math
from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lookupvit.weights.file import WRAPPERS

# What wrappers put in front of a parameter's name.
_WRAPPERS = (*WRAPPERS, "module.")


def clean_name(name: str) -> str:
    """A parameter's name without the prefixes of `torch.compile`, DDP and FSDP."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def decayed_names(module: nn.Module, exclude: Collection[str] = ()) -> set[str]:
    """Names of the parameters that weight decay applies to: matrices and kernels, not biases, gains or positions.

    Call it before the module is sharded: FSDP flattens its parameters, after which a matrix looks like a vector.

    Args:
        module: The model.
        exclude: Names that never decay (a model's `no_weight_decay()`).
    """
    return {name for name, p in module.named_parameters() if p.ndim >= 2 and name not in set(exclude)}


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    decayed: Collection[str],
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_id: Callable[[str], int] | None = None,
    top: int = 0,
) -> list[dict]:
    """Sorts parameters into groups of equal learning rate and weight decay.

    Args:
        named_parameters: Names (wrapper prefixes are dropped) and parameters; frozen ones are left out.
        decayed: Names that weight decay applies to, from `decayed_names`.
        lr: Learning rate of the last layer.
        weight_decay: Weight decay of those; in AdamW it is multiplied by the learning rate.
        layer_decay: A layer's learning rate is `lr * layer_decay ** (top - layer_id)`; 1 turns it off.
        layer_id: Gives the layer of a parameter's name: 0 is the embedding, `top` the heads.
        top: The highest layer id.

    Returns:
        Groups for a torch optimiser, in ascending order of layer; each has a `name` of its own.
    """
    groups: dict[tuple[int, bool], dict] = {}
    for raw_name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        name = clean_name(raw_name)
        layer, decays = layer_id(name) if layer_id is not None and layer_decay != 1.0 else top, name in decayed
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "name": f"layer{layer}_{'decay' if decays else 'no_decay'}",
                "lr": lr * layer_decay ** (top - layer),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def warmup_cosine(total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step: linear warm-up, then half a cosine to `min_ratio`.

    Step `s` of the warm-up (from 0) has the factor `(s + 1) / (warmup_steps + 1)`, so that no step is wasted at zero;
    step `warmup_steps` has 1, and step `total_steps`, after the last, would have `min_ratio`.

    Args:
        total_steps: Optimiser steps of the whole run.
        warmup_steps: Optimiser steps of the warm-up.
        min_ratio: The last learning rate divided by the highest one, in [0, 1].

    Raises:
        ValueError: If the warm-up is not shorter than the run.
    """
    return _warmed_up(total_steps, warmup_steps, min_ratio, lambda progress: 0.5 * (1 + math.cos(math.pi * progress)))


def warmup_poly(
    total_steps: int, warmup_steps: int, min_ratio: float = 0.0, power: float = 0.9
) -> Callable[[int], float]:
    """As `warmup_cosine`, with `(1 - progress) ** power` in place of the cosine, as is usual in segmentation."""
    return _warmed_up(total_steps, warmup_steps, min_ratio, lambda progress: (1 - progress) ** power)


def _warmed_up(
    total_steps: int, warmup_steps: int, min_ratio: float, decay: Callable[[float], float]
) -> Callable[[int], float]:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"the warm-up of {warmup_steps} steps does not fit a run of {total_steps} steps: lower "
            "--model.warmup_steps or --model.warmup_epochs, or train for longer (--trainer.max_epochs)"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return min_ratio + (1 - min_ratio) * decay(progress)

    return factor


SCHEDULES = {"cosine": warmup_cosine, "poly": warmup_poly}
OPTIMIZERS = ("adamw", "sgd")


def build_optimizer(
    name: str,
    groups: list[dict],
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """The optimiser over parameter groups, fused where all parameters are on a CPU or a CUDA device.

    Args:
        name: `"adamw"` or `"sgd"`.
        groups: From `parameter_groups`.
        betas: AdamW's betas.
        momentum: SGD's momentum.
        scaled: Whether a gradient scaler (`16-mixed`) is used. Then the optimiser is not fused: a fused one divides by
            the scale in its own step, which is after the gradients were clipped.
    """
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = True if devices <= {"cpu", "cuda"} and not scaled else None
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
        fused = None  # torch's fused SGD does not know sharded parameters
    return torch.optim.SGD(groups, momentum=momentum, fused=fused)
