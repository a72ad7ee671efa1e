"""Parameter groups, the schedule and AdamW, by hand."""

import math

import pytest
import torch
from torch import nn

from lookupvit.model.zoo import create_model
from lookupvit.tasks.base import by_place
from lookupvit.tasks.optim import build_optimizer, clean_name, decayed_names, parameter_groups, warmup_cosine

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 4, "num_classes": 3}


def groups_of(model: nn.Module, layer_decay: float = 1.0) -> list[dict]:
    decayed = decayed_names(model, model.no_weight_decay())
    return parameter_groups(
        model.named_parameters(), decayed, 1e-3, 0.1, layer_decay, model.layer_id, model.num_layers - 1
    )


@pytest.mark.parametrize("name", ["lookupvit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_matrices_decay_and_nothing_else(name: str) -> None:
    model = create_model(name, **TINY)
    names = {id(p): n for n, p in model.named_parameters()}
    plain, decayed = groups_of(model)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    assert {names[id(p)] for p in decayed["params"]} == {
        n for n, p in model.named_parameters() if p.ndim >= 2 and "pos_embed" not in n
    }
    assert any("pos_embed" in names[id(p)] for p in plain["params"])
    assert all(
        names[id(p)].endswith("bias") or "norm" in names[id(p)] or "pos" in names[id(p)] for p in plain["params"]
    )
    assert len(plain["params"]) + len(decayed["params"]) == len(names)


@pytest.mark.parametrize("name", ["lookupvit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_layer_decay_falls_from_the_heads_to_the_embedding(name: str) -> None:
    model = create_model(name, **TINY)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups_of(model, 0.5) for p in group["params"]}
    for n, rate in rates.items():  # depth 2: embedding 0, blocks 1 and 2, heads 3
        layer = 0 if "embed" in n else 1 if "blocks.0" in n else 2 if "blocks.1" in n else 3
        assert rate == pytest.approx(1e-3 * 0.5 ** (3 - layer)), n


def test_frozen_parameters_are_left_out_and_wrapped_names_are_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    wrapped = [(f"_fsdp_wrapped_module._orig_mod.{n}", p) for n, p in model.named_parameters()]
    plain, decayed = parameter_groups(wrapped, decayed_names(model), 1.0, 0.1)
    assert [p is model[1].weight for p in decayed["params"]] == [True]
    assert [p is model[1].bias for p in plain["params"]] == [True]
    assert clean_name("module.blocks.0._checkpoint_wrapped_module.q.weight") == "blocks.0.q.weight"


def test_schedule_by_hand() -> None:
    factor = warmup_cosine(total_steps=14, warmup_steps=4, min_ratio=0.1)
    got = [factor(step) for step in range(15)]
    assert got[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert got[9] == pytest.approx(0.55)  # half way down
    assert got[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))
    assert got[14] == pytest.approx(0.1)
    assert warmup_cosine(10, 0)(0) == 1.0
    with pytest.raises(ValueError, match="warm-up of 10 steps does not fit a run of 10 steps"):
        warmup_cosine(10, 10)


def test_fused_adamw_takes_the_steps_of_the_formula() -> None:
    p = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = build_optimizer("adamw", [{"params": [p], "lr": 0.1, "weight_decay": 0.5}], betas=(0.9, 0.99))
    assert optimizer.param_groups[0]["fused"] is True
    value, m, v = torch.tensor([[1.0, -2.0]], dtype=torch.float64), 0.0, 0.0
    for step in range(1, 4):
        grad = torch.tensor([[0.3, -0.1 * step]], dtype=torch.float64)
        p.grad = grad.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        value = value * (1 - 0.1 * 0.5)
        value = value - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
    torch.testing.assert_close(p.detach(), value)


def test_a_saved_optimiser_is_numbered_by_place_and_loads_all_the_same() -> None:
    """FSDP reads a file's numbers as places among the parameters; torch goes by the groups' lists."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = parameter_groups(model.named_parameters(), decayed_names(model), lr=0.1, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    places = {parameter: place for place, parameter in enumerate(model.parameters())}
    saved = by_place(optimizer.state_dict(), optimizer, places)
    for place, parameter in enumerate(model.parameters()):
        assert saved["state"][place]["exp_avg"] is optimizer.state[parameter]["exp_avg"]
    assert [group["params"] for group in saved["param_groups"]] == [[1, 2, 3, 5], [0, 4]]
    again = torch.optim.AdamW(
        parameter_groups(model.named_parameters(), decayed_names(model), lr=0.1, weight_decay=0.1)
    )
    again.load_state_dict(saved)
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
