"""One FLOP count on every torch: attention by hand, whichever operator a device takes."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry

from lookupvit.model.flops import count_call_macs

# (B, H, tokens, d) of the queries, of keys and values; one product of theirs has B H N M d = 2 * 3 * 40 * 7 * 8 MACs.
QUERY, KEY = (2, 3, 40, 8), (2, 3, 7, 8)
PRODUCT = 13_440


def attention_operators() -> list[str]:
    """Every attention of this torch that a device may take as it is, rather than as products that are counted."""
    names = {schema.name.removeprefix("aten::") for schema in torch._C._jit_get_all_schemas()}
    composite = "_scaled_dot_product_attention_math"
    return sorted(name for name in names if name.startswith("_scaled_dot_product_") and name != composite)


@pytest.mark.parametrize("name", attention_operators())
def test_every_attention_operator_has_the_formula(name):
    formula = flop_registry[getattr(torch.ops.aten, name)]
    query, key = torch.empty(QUERY, device="meta"), torch.empty(KEY, device="meta")
    if name.endswith("_backward"):  # the scores again, two products for each of the two of the forward pass
        assert formula(query, query, key, key, out_val=(query, key, key)) == 2 * 5 * PRODUCT
    else:
        assert formula(query, key, key, out_val=query) == 2 * 2 * PRODUCT


def test_a_real_call_on_a_cpu_and_its_backward_pass():
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in (QUERY, KEY, KEY))
    with torch.no_grad():
        assert count_call_macs(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * PRODUCT
    whole = count_call_macs(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert whole == (2 + 5) * PRODUCT
    x = torch.zeros(2, 4, 5)
    assert count_call_macs(lambda: x.baddbmm_(torch.ones(2, 4, 3), torch.ones(2, 3, 5))) == 2 * 4 * 3 * 5
