"""Under torch.compile: no graph break, one compilation a compressed size, the same gradients."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from lookupvit import LookupViT
from lookupvit.grid import resize_tokens


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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sizes", [((5, 5), (2, 2)), ((5, 3), (2, 2)), ((4, 5, 3), (2, 3, 2))], ids=str)
def test_the_resize_of_any_grid_is_one_graph(sizes, autocast):
    torch._dynamo.reset()
    x = torch.randn(2, torch.Size(sizes[0]).numel(), 4, requires_grad=True)
    compiled = torch.compile(resize_tokens, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        want, got = resize_tokens(x, *sizes), compiled(x, *sizes)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(y.sin().sum(), x)[0] for y in (want, got)]
    # torch traces the backward pass of a compiled function under the autocast outside it: its products are bfloat16's
    torch.testing.assert_close(*gradients, **({"rtol": 0.02, "atol": 0.01} if autocast else {}))


def test_under_ddp_and_autocast(tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    options = {"patch_size": 4, "num_classes": 3, "embed_dim": 12, "depth": 1, "num_heads": 3, "path": "plain"}
    model = LookupViT(img_size=(20, 12), compressed_size=(2, 3), **options)
    images = torch.randn(2, 3, 20, 12)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        compiled = torch.compile(nn.parallel.DistributedDataParallel(model), backend="aot_eager", dynamic=False)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = run(images).float().sin().sum()
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    finally:
        dist.destroy_process_group()
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=0.02, atol=0.02)
