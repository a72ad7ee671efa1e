"""Where a model stands before its first step: layers that do not learn, positions of another image size."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from lookupvit.weights.file import Weights, facts, with_facts
from lookupvit.weights.resize import resize_positions
from lookupvit.weights.vit_names import common_name

_POSITIONS = tuple(
    f"model.{prefix}{kind}.pos_embed" for prefix in ("", "features.backbone.") for kind in ("embed", "vit")
)


def freeze_layers(model: nn.Module, freeze: int | str) -> None:
    """Stops the parameters of the lower layers from learning.

    Args:
        model: A model with `layer_id` and `num_layers`, as `LookupViT` has.
        freeze: Number of layers, from the embedding up; `"backbone"`: everything but the linear classifiers.

    Raises:
        ValueError: If `freeze` is neither, or if no layer is left to learn.
    """
    if freeze != "backbone" and (not isinstance(freeze, int) or freeze < 0):
        raise ValueError(f"freeze {freeze!r} is neither a number of layers, 0 or more, nor 'backbone'")
    if freeze != "backbone" and freeze >= model.num_layers:
        raise ValueError(f"freeze {freeze} leaves nothing to learn of {model.num_layers} layers: give fewer")
    for name, parameter in model.named_parameters():
        if freeze == "backbone":
            parameter.requires_grad_(common_name(name).startswith("heads."))
        elif model.layer_id(name) < freeze:
            parameter.requires_grad_(False)


def resize_loaded_positions(task: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Resizes the positions in a checkpoint that is being loaded to the image size of the task's model, in place."""
    own, state = task.state_dict(), checkpoint.get("state_dict", {})  # sharded weights are read by their strategy
    for name in _POSITIONS:
        if name in own and name in state and state[name].shape != own[name].shape:
            grid = with_facts(Weights({}), checkpoint.get("hyper_parameters")).grid
            if grid is not None and state[name].shape[2] == own[name].shape[2]:
                resized = resize_positions(state[name], grid, tuple(facts(task.model)["grid"]))
                checkpoint["state_dict"] = {**state, name: resized}
