"""Under torch.compile: no graph break, one compilation a compressed size, the same gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lookupvit import LookupViT


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
def test_one_graph_and_one_compilation_a_size(path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = LookupViT(img_size=20, patch_size=4, num_classes=3, embed_dim=12, depth=2, num_heads=3, path=path).double()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)  # a graph break is an error
    for size in ((2, 2), (3, 4), (2, 2), (3, 4), (5, 5), (2, 2)):
        results = []
        for run in (model, compiled):
            model.zero_grad()
            out = run(images, compressed_size=size)
            out.sin().sum().backward()
            results.append([out, *(p.grad.clone() for p in model.parameters())])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager, rtol=1e-9, atol=1e-9)
    assert counter.frame_count == 3
