"""Attention maps against the forward pass's own attention, torch's, and rows and figures worked out by hand."""

from math import log

import pytest
import torch
from torch import nn

from lookupvit.analysis.attention_maps import Attention, BlockAttention, attention_of, rollout, spread
from lookupvit.model.zoo import create_model

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": (32, 48), "patch_size": 8, "num_classes": 5}


def model_of(name: str = "lookupvit_tiny_patch16_224", **args) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("lookupvit_"):
        args = {"compressed_size": (4, 4), **args}
    model = create_model(name, **{**SMALL, **args}).double().eval()
    for parameter in model.parameters():  # larger than at the start, so that attention is far from uniform
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("cross_norm", ["input", "projection"])
@pytest.mark.parametrize("path", ["plain", "absorbed"])
def test_the_gather_attention_is_the_forward_pass_s(path: str, cross_norm: str) -> None:
    model = model_of(path=path if cross_norm == "input" else "plain", cross_norm=cross_norm)
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    found = attention_of(model, x, (2, 3))
    _, states = model.forward_intermediates(x, compressed_size=(2, 3))
    assert (found.grid_size, found.compressed_size) == ((4, 6), (2, 3))
    for block, state in zip(found.blocks, states, strict=True):
        torch.testing.assert_close(block.gather.double(), state.attention, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(block.infuse.sum(-1), torch.ones(2, 3, 24))
        received = state.attention.transpose(2, 3)
        torch.testing.assert_close(
            block.infuse.double(), received / received.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4
        )


def test_renormalized_infusion_is_the_forward_pass_s() -> None:
    model = model_of(reuse="renormalize")
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    _, states = model.forward_intermediates(x)
    for block, state in zip(attention_of(model, x).blocks, states, strict=True):
        torch.testing.assert_close(block.infuse.double(), state.attention.transpose(2, 3), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(block.gather.sum(-1), torch.ones(1, 3, 16))  # M = 4 x 4


@pytest.mark.parametrize("residual_init", ["default", 0.5])
@pytest.mark.parametrize("cross_norm", ["input", "projection"])
def test_fresh_infusion_is_what_the_lookup_tokens_get(cross_norm: str, residual_init: str | float) -> None:
    model = model_of(reuse="fresh", cross_norm=cross_norm, residual_init=residual_init)
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    cross, seen = model.blocks[1].cross, {}
    for layer in (cross.v_infuse if cross_norm == "input" else cross.norm_infuse, cross.proj_infuse):
        layer.register_forward_hook(lambda module, args, output: seen.update({module: (args[0], output)}))
    cross.path = "plain"
    matrix = attention_of(model, x).blocks[1].infuse.double()  # (B, H, N, M)
    values = seen[cross.v_infuse if cross_norm == "input" else cross.norm_infuse][1]  # (B, M, D)
    values = values.unflatten(-1, (cross.num_heads, -1)).transpose(1, 2)  # (B, M, D) -> (B, H, M, d)
    read = (matrix @ values).transpose(1, 2).flatten(2)  # (B, H, N, d) -> (B, N, D)
    torch.testing.assert_close(read, seen[cross.proj_infuse][0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["lookupvit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_self_attention_times_values_is_what_the_layer_gives(name: str) -> None:
    model = model_of(name)
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    layer = (model.blocks if name.startswith("lookup") else model.vit.blocks)[1].attn
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    matrix = attention_of(model, x).blocks[1].refine.double()
    values = layer.qkv(seen["x"])[..., 48:].unflatten(-1, (3, 8)).transpose(1, 2)  # (B, M, D) -> (B, H, M, d)
    read = (matrix @ values).transpose(1, 2).flatten(2)  # (B, H, M, d) -> (B, M, D)
    torch.testing.assert_close(layer.proj(read), seen["y"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "grid", "size", "batch"),
    [
        ("lookupvivit_tiny_joint_patch16x2_224", (2, 4, 4), (2, 2, 2), 2),
        ("lookupvivit_tiny_factorised_patch16x2_224", (4, 4), (2, 2), 4),
        ("vivit_tiny_joint_patch16x2_224", (2, 4, 4), None, 2),
        ("vivit_tiny_factorised_patch16x2_224", (4, 4), None, 4),
    ],
)
def test_clips(name: str, grid: tuple[int, ...], size: tuple[int, ...] | None, batch: int) -> None:
    args = {"img_size": 32, "num_frames": 4}
    if size is not None:
        args["compressed_size"] = (2, 2, 2) if "joint" in name else (2, 2)
    found = attention_of(model_of(name, **args), torch.randn(2, 3, 4, 32, 32, dtype=torch.float64))
    assert (found.grid_size, found.compressed_size) == (grid, size)
    head = "lookup" if size is None else "compressed"
    relevance = rollout(found, head)
    assert relevance.shape == (batch, torch.Size(grid).numel())
    torch.testing.assert_close(relevance.sum(-1), torch.ones(batch, dtype=relevance.dtype), atol=1e-5, rtol=0)


def test_spread_worked_out_by_hand() -> None:
    apart = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    alike = torch.full((2, 4), 0.25)
    halves = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]])
    entropy, diversity = spread(torch.stack([apart, alike, halves])[None])
    mixed = 0.25 * log(4) + 0.5 * log(2) + 0.25 * log(4)  # mean row of the last: 1/4, 1/2, 1/4, 0
    torch.testing.assert_close(entropy, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.0, (mixed - log(2)) / log(2)], dtype=torch.float64)
    torch.testing.assert_close(diversity, expected)
    assert spread(torch.full((1, 1, 1, 4), 0.25))[1].item() == 0


def test_rollout_worked_out_by_hand() -> None:
    def rows(*values: list[float]) -> torch.Tensor:
        return torch.tensor(values)[None, None]  # (B, H, rows, columns) = (1, 1, ...)

    one = BlockAttention(refine=rows([1.0]), gather=rows([1.0, 0.0]), infuse=rows([1.0], [1.0]))
    attention = Attention([one], (1, 2), (1, 1), torch.tensor([[0.5, 0.5]]))
    # half of the resize, half of the gather: (3/4, 1/4); refining itself keeps it
    torch.testing.assert_close(rollout(attention), torch.tensor([[0.75, 0.25]]))
    # each lookup token: half itself, half that; the mean of (7/8, 1/8) and (3/8, 5/8)
    torch.testing.assert_close(rollout(attention, "lookup"), torch.tensor([[0.625, 0.375]]))
    vit = Attention([BlockAttention(refine=rows([1.0, 0.0], [1.0, 0.0]))], (1, 2))
    torch.testing.assert_close(rollout(vit, "lookup"), torch.tensor([[0.75, 0.25]]))
    with pytest.raises(ValueError, match="a ViT has 'lookup'"):
        rollout(vit)


def test_what_has_no_attention_is_one_line() -> None:
    with pytest.raises(ValueError, match="attention of a Linear cannot be shown"):
        attention_of(nn.Linear(2, 2), torch.zeros(1, 2))
