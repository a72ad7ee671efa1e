"""Counted launches: against counts by hand and against what real tensors dispatch."""

import json

import pytest
import torch
from timm.models.vision_transformer import Block

from lookupvit.bench.launches import LaunchCounter, count_block
from lookupvit.cli.bench import bench_main
from lookupvit.model.block import LookupViTBlock

PATHS = (None, "plain", "absorbed", "tiled")
SHAPE = {"n": 13, "m": 3, "batch": 2, "dim": 8, "num_heads": 2}


def test_vit_block_by_hand():
    # 2 norms, 4 linear layers, attention, GELU, 2 residual sums
    forward, backward = count_block(None, **SHAPE, dtype="fp32")
    assert forward.counts.launches == 2 + 4 + 1 + 1 + 2 == len(forward.names)
    assert (forward.counts.type_copies, forward.counts.copies, forward.counts.attention) == (0, 0, 0)
    assert forward.counts.dispatched > forward.counts.launches
    # two products and the bias of each of 4 layers
    assert backward.names.count("mm") == 8 and backward.names.count("sum") == 4
    # autocast converts 4 weights, 4 biases and the results of 2 norms
    assert count_block(None, **SHAPE, dtype="bf16")[0].counts.type_copies == 10


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("path", PATHS)
def test_fake_tensors_dispatch_what_real_ones_do(path, dtype):
    counted = count_block(path, **SHAPE, dtype=dtype, drop_path=0.5)
    block = (
        Block(8, 2, qkv_bias=True, drop_path=0.5) if path is None else LookupViTBlock(8, 2, path=path, drop_path=0.5)
    )
    lookup, compressed = torch.randn(2, 13, 8, requires_grad=True), torch.randn(2, 3, 8, requires_grad=True)
    forward, backward = LaunchCounter(3, 13, 2 * 2 * 3 * 13), LaunchCounter(3, 13, 2 * 2 * 3 * 13)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"), forward:
        out = (block(lookup),) if path is None else block(compressed, lookup)[:2]
    grads = [torch.ones_like(o) for o in out]
    with backward:
        torch.autograd.backward(out, grads)
    assert [c.names for c in counted] == [forward.names, backward.names]
    assert [c.counts for c in counted] == [forward.counts, backward.counts]


def test_bytes_of_a():
    entries = 2 * 2 * 3 * 13
    # scores and their softmax
    assert count_block("absorbed", **SHAPE, dtype="fp32")[0].counts.attention == 2 * entries * 4
    assert count_block("absorbed", **SHAPE, dtype="bf16")[0].counts.attention == 2 * entries * 2
    assert count_block("plain", **SHAPE, dtype="bf16")[0].counts.attention == 2 * entries * 2


def test_command(tmp_path, capsys):
    sizes = ["--shapes", "12x3", "--batch", "2", "--embed_dim", "8", "--num_heads", "2"]
    bench_main(["launches", *sizes, "--paths", "absorbed", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "launches.json").read_text())["rows"]
    names = ["ViT block (timm)"] * 2 + ["LookupViT block, absorbed"] * 2
    assert [(r["model"], r["dtype"], r["drop path"]) for r in rows] == [
        (name, dtype, p) for dtype in ("fp32", "bf16") for name, p in zip(names, (0, 0.1) * 2, strict=True)
    ]
    assert all(0 < row["fwd"] < row["step"] < row["step all"] for row in rows)
    assert "operators dispatched in the forward pass" in (tmp_path / "launches.md").read_text()
    assert "absorbed" in capsys.readouterr().out
