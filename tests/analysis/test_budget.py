"""The largest compressed size that a budget pays for."""

from math import prod

import pytest
import torch

from lookupvit import create_model
from lookupvit.analysis import budget
from lookupvit.analysis.budget import call_ms, default_candidates, fit_budget, largest_size
from lookupvit.analysis.cost import count_macs


@pytest.fixture(scope="module")
def model():
    return create_model("lookupvit_tiny_patch4_32", embed_dim=24, num_heads=3, depth=1, num_classes=10)


def test_candidates_keep_the_aspect_of_the_grid():
    assert default_candidates((3, 3)) == [(1, 1), (2, 2), (3, 3)]
    assert default_candidates((2, 4)) == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert default_candidates((6, 9))[-1] == (6, 9)


def test_paper_shapes():
    with torch.device("meta"):
        base = create_model("lookupvit_base_patch16_224", path="plain")
    # as the paper writes it, with embedding and heads: 3x3 6.67, 4x4 7.43, 5x5 8.47 G
    assert largest_size(base, gmacs=7) == (3, 3)
    assert largest_size(base, gmacs=8.46) == (4, 4)
    assert largest_size(base, gmacs=8.48) == (5, 5)


@pytest.mark.parametrize("img_size", [32, (32, 48)])
@pytest.mark.parametrize("head", [None, "compressed"])
def test_the_choice_fits_and_the_next_does_not(model, img_size, head):
    grid = (8, 8) if img_size == 32 else (8, 12)
    costs = {size: count_macs(model, img_size, size, head) for size in default_candidates(grid)}
    for size, macs in costs.items():
        fit = fit_budget(model, gmacs=macs / 1e9, img_size=img_size, head=head)
        assert fit.size == size and fit.macs == macs and fit.ms is None
        if fit.next_size:
            assert fit.next_cost * 1e9 == pytest.approx(costs[fit.next_size]) and costs[fit.next_size] > macs
        else:
            assert size == grid


def test_candidates_and_errors(model):
    assert largest_size(model, gmacs=100, candidates=[(2, 2), (4, 2)]) == (4, 2)
    smallest = count_macs(model, 32, (1, 1)) / 1e9
    with pytest.raises(ValueError, match=f"smallest compressed size, 1x1, costs {smallest:.4g}"):
        largest_size(model, gmacs=smallest / 2)
    with pytest.raises(ValueError, match="one of them"):
        largest_size(model)
    with pytest.raises(ValueError, match="one of them"):
        largest_size(model, gmacs=1, ms=1)
    with pytest.raises(ValueError, match="does not fit the lookup grid"):
        largest_size(model, gmacs=1, candidates=[(9, 9)])
    with pytest.raises(ValueError, match="ViT has no compressed size"):
        largest_size(create_model("vit_tiny_patch4_32", depth=1), gmacs=1)


def test_bisection_finds_the_last_that_fits(model, monkeypatch):
    asked = []

    def fake(model, size, img_size, batch, head):
        asked.append((size, img_size, batch, head))
        return float(prod(size))

    monkeypatch.setattr(budget, "call_ms", fake)
    for ms in range(1, 70):
        asked.clear()
        fit = fit_budget(model, ms=ms, batch=4, head="lookup")
        side = min(8, int(ms**0.5))
        assert fit.size == (side, side) and fit.ms == side**2
        assert fit.next_size == (None if side == 8 else (side + 1, side + 1))
        assert fit.next_cost == (None if side == 8 else (side + 1) ** 2)
        assert len(asked) <= 5 and len(set(asked)) == len(asked)
        assert asked[0] == ((1, 1), (32, 32), 4, "lookup")
    with pytest.raises(ValueError, match=r"0.5 ms at batch 1 is too small: .* 1x1, costs 1 at 32x32 px"):
        fit_budget(model, ms=0.5)


def test_a_call_is_timed_in_evaluation_mode_without_a_trace(model):
    model.train()
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args: seen.append((module.training, torch.is_grad_enabled(), args[0].shape, args[1]))
    )
    try:
        assert call_ms(model, (3, 3), (32, 40), batch=2, rounds=3) > 0
    finally:
        hook.remove()
    assert seen == [(False, False, (2, 3, 32, 40), (3, 3))] * 4
    assert model.training
