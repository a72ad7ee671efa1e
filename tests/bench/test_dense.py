"""The dense suite: its windowed ViT against attention in loops over windows, and the way from command line to file."""

import json

import pytest
import torch
import torch.nn.functional as F

from lookupvit import create_model
from lookupvit.bench.cases import BASELINE
from lookupvit.bench.dense import WindowedViT, dense_cases
from lookupvit.cli.bench import bench_main

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def by_hand(vit, images, window, is_global):
    """Each block for each window on its own; a window at the edge is filled up with zeros after the norm."""
    x = vit.patch_embed(images)
    x = vit._pos_embed(x)[0]  # (N, D)
    h, w = (side // 16 for side in images.shape[2:])
    for place, block in enumerate(vit.blocks):
        normed, out = block.norm1(x).view(h, w, -1), torch.zeros(h, w, x.shape[1], dtype=x.dtype)
        step = max(h, w) if place in is_global else window
        for top in range(0, h, step):
            for left in range(0, w, step):
                part = normed[top : top + step, left : left + step]
                rows, columns = part.shape[:2]
                if place not in is_global:
                    part = F.pad(part, (0, 0, 0, step - columns, 0, step - rows))
                tokens = block.attn(part.reshape(1, -1, x.shape[1]))[0].view(*part.shape)
                out[top : top + rows, left : left + columns] = tokens[:rows, :columns]
        x = x + out.view(h * w, -1)
        x = x + block.mlp(block.norm2(x))
    return vit.norm(x).T.view(-1, h, w)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
def test_windowed_vit_is_attention_in_each_window(size):
    torch.manual_seed(0)
    vit = create_model("vit_tiny_patch16_224", img_size=size, num_classes=0, **{**SMALL, "depth": 4}).double().eval()
    model = WindowedViT(vit, window=2, global_blocks=2)
    assert model.is_global == {1, 3}
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.stack([by_hand(vit.vit, image[None], 2, {1, 3}) for image in images])
    torch.testing.assert_close(model(images), expected)


def test_cost_of_b16_at_1024_px():
    with torch.device("meta"):
        cases = {case.name: case.macs(1024) / 1e9 for case in dense_cases("base", 1024, (5, 10), "linear")}
    n, d = 64 * 64, 768
    shared = n * 768 * 768 + n * d * 150  # embedding (16 x 16 x 3 is 768, too) and head
    assert cases[BASELINE] * 1e9 == shared + 12 * (12 * n * d * d + 2 * n * n * d)
    padded = 70 * 70  # 5 x 5 windows of 14
    windowed = 4 * padded * d * d + 2 * padded * 14 * 14 * d + 8 * n * d * d
    assert cases["ViT, windows of 14"] * 1e9 == shared + 4 * (12 * n * d * d + 2 * n * n * d) + 8 * windowed
    assert cases["LookupViT 5x5"] < cases["LookupViT 10x10"] < cases["ViT, windows of 14"] / 2


def test_the_suite_from_the_command_line_to_its_files(tmp_path, capsys):
    bench_main(["dense", "--quick", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "dense.json").read_text())["rows"]
    groups = {(row["head"], row["mode"]) for row in rows}
    assert groups == {(h, m) for h in ("linear", "pyramid") for m in ("forward", "training step")}
    for head, mode in groups:
        group = [row for row in rows if (row["head"], row["mode"]) == (head, mode)]
        names = [row["model"] for row in group]
        assert names == [BASELINE, "ViT, windows of 14", "LookupViT 3x3", "LookupViT 5x5"]
        assert group[0]["faster"] == group[0]["peak"] == 1
        for row in group:
            assert row["realised"] == pytest.approx(row["faster"] / row["fewer ops"]) and row["peak MiB"] > 0
            assert (row["saved MiB"] or 0) > 0 or mode == "forward"
    assert "ViT, windows of 14" in capsys.readouterr().out


def test_sizes_that_no_patch_divides():
    with pytest.raises(ValueError, match="--img_size 500: patches are 16 px wide"):
        bench_main(["dense", "--img_size", "500"])
