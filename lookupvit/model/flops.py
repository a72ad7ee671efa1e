"""Multiply-adds of a call, the same number on every supported torch.

Torch's counter gives an operator that it has no formula for zero operations, without a word, and which operators have
one changes with its version: before 2.15 the attention that a CPU takes had none. What is missing is registered here,
once this package is imported, so that any `FlopCounterMode` counts it.
"""

from collections.abc import Callable

import torch
from torch.utils import flop_counter

_aten = torch.ops.aten

# Every operator counts as the one on its right, which every supported torch has a formula for. All take (query, key,
# value, ...), a backward (grad_out, query, key, value, ...), each (B, H, tokens, d).
_ALIKE = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_fused_attention_overrideable": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_fused_attention_overrideable_backward": "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_attention_math_for_mps": "_scaled_dot_product_flash_attention",
    "baddbmm_": "baddbmm",
}


def register_missing_formulas() -> None:
    """Registers what torch's counter lacks; what it has stays as it is."""
    for name, like in _ALIKE.items():
        operator = getattr(_aten, name, None)
        if operator is not None and operator not in flop_counter.flop_registry:
            flop_counter.flop_registry[operator] = flop_counter.flop_registry[getattr(_aten, like)]


def count_call_macs(function: Callable[[], object]) -> int:
    """Multiply-adds that one call of `function` executes, in a backward pass as well; half of torch's FLOPs."""
    with flop_counter.FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2
