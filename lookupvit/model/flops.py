"""Counts the multiply-adds of a call, with the same result on every supported torch.

Torch's counter silently counts an operator without a formula as zero operations, and which operators have a formula
depends on its version: before 2.15 the attention on a CPU had none. Importing `lookupvit.model` registers the missing
formulas, so that any `FlopCounterMode` counts these operators.
"""

from collections.abc import Callable

import torch
from torch.utils import flop_counter

_aten = torch.ops.aten

# Each operator counts as the one on its right, for which every supported torch has a formula. An attention takes
# (query, key, value, ...) and its backward (grad_out, query, key, value, ...), each (B, H, tokens, d).
_ALIKE = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_fused_attention_overrideable": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_fused_attention_overrideable_backward": "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_attention_math_for_mps": "_scaled_dot_product_flash_attention",
    "baddbmm_": "baddbmm",
}


def register_missing_formulas() -> None:
    """Registers the formulas that torch's counter lacks; those that it has stay as they are."""
    for name, like in _ALIKE.items():
        operator = getattr(_aten, name, None)
        if operator is not None and operator not in flop_counter.flop_registry:
            flop_counter.flop_registry[operator] = flop_counter.flop_registry[getattr(_aten, like)]


def count_call_macs(function: Callable[[], object]) -> int:
    """Multiply-adds of one call of `function`, its backward pass included if it runs one; half of torch's FLOPs."""
    with flop_counter.FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2
