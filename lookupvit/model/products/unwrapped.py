"""Whether the weights of a layer may be read without calling the layer.

The absorbed products and the MLP with its own backward pass read `layer.weight` where the plain path calls `layer(x)`.
The results agree only if a call does nothing else. LoRA adapters, quantised layers, parametrisations and hooks do
more, so a layer with one of them is called.
"""

from torch import nn
from torch.nn.modules import module as _hooks
from torch.utils.module_tracker import ModuleTracker


def unwrapped(*layers: nn.Module) -> bool:
    """Whether each of `layers` is exactly torch's own `Linear` or `LayerNorm`, with plain weights and without hooks.

    Args:
        layers: The layers whose weights are to be read.

    Returns:
        False for a subclass or a stand-in (peft, `torch.ao`, `parametrize`), a layer with hooks of its own or under
        global ones, one whose `forward` was replaced, and one whose weight is a wrapper (a DTensor, torchao's types).
    """
    if _hooks._has_any_global_hook() and _global_hooks():
        return False
    for layer in layers:
        if (
            (type(layer) is not nn.Linear and type(layer) is not nn.LayerNorm)
            or layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or "forward" in layer.__dict__
            or hasattr(type(layer.weight), "__tensor_flatten__")
        ):
            return False
    return True


def _global_hooks() -> bool:
    """Whether there is a global hook other than torch's ModuleTracker.

    The tracker serves torch's FLOP counter, which is to count the products that really run.
    """
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    hooks = [hook for kind in kinds for hook in getattr(_hooks, f"_global_{kind}_hooks").values()]
    return not all(isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)
