"""Multiply-adds: measured against the method's formula, and by hand."""

import pytest
import torch

from lookupvit import create_model
from lookupvit.analysis.cost import (
    count_macs,
    count_parameters,
    embedding_macs,
    lookupvit_block_macs,
    model_macs,
    vit_block_macs,
    vit_macs,
)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("img_size", [224, 384])
def test_measured_equals_the_formula(size, img_size):
    with torch.device("meta"):
        model = create_model(f"lookupvit_{size}_patch16_{img_size}")
        vit = create_model(f"vit_{size}_patch16_{img_size}")
    n, dim, depth = (img_size // 16) ** 2, model.embed_dim, model.depth
    embedding = n * 768 * dim
    assert count_macs(vit) == pytest.approx(
        embedding + dim * 1000 + depth * (2 * n * n * dim + 12 * n * dim**2), rel=1e-3
    )
    for side in (3, 5, 7, 10):
        m = side * side
        terms = model_macs(model, compressed_size=side, path="plain")
        written = depth * ((3 * n * m + 2 * m * m) * dim + (4 * n + 15 * m) * dim**2)
        assert sum(terms.values()) - terms["embedding"] - terms["heads"] == written
        model.set_path("plain")
        assert count_macs(model, img_size, side) == pytest.approx(sum(terms.values()), rel=1e-2)


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("path", ["absorbed", "tiled", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"cross_norm": "projection"}, {"head": "compressed"}, {"infuse": False}], ids=str
)
def test_measured_equals_the_model_of_every_path(size, path, options):
    with torch.device("meta"):
        model = create_model(f"lookupvit_{size}_patch16_224", depth=2, path=path, **options)
    for side in (3, 5, 10):
        terms = model_macs(model, compressed_size=side)
        assert count_macs(model, 224, side) == pytest.approx(sum(terms.values()), rel=1e-3)
        if path == "auto":  # the margin asked of the absorbed path is a tenth of one product
            best = min(sum(model_macs(model, compressed_size=side, path=p).values()) for p in ("plain", "absorbed"))
            assert sum(terms.values()) <= 1.1 * best


def test_paper_shapes_by_hand():
    # B/16 at 224, 5x5, one block: as written (3*196*25 + 2*625)*768 + (4*196 + 15*25)*768^2
    assert sum(lookupvit_block_macs(196, 25, 768, 12).values()) == (14700 + 1250) * 768 + 1159 * 768**2
    # all three absorbed: (3*12*196*25 + 1250)*768 + (196 + 18*25)*768^2
    assert sum(lookupvit_block_macs(196, 25, 768, 12, "absorbed").values()) == (176400 + 1250) * 768 + 646 * 768**2
    assert vit_block_macs(196, 768) == 2 * 196**2 * 768 + 12 * 196 * 768**2


def test_one_head_costs_less_and_parameters_are_counted():
    model = create_model("lookupvit_tiny_patch4_32", depth=2, num_classes=10, path="plain")
    n, m, dim = 64, 9, 192
    saved = count_macs(model) - count_macs(model, head="compressed")
    infuse = lookupvit_block_macs(n, m, dim, 3)["infuse"]
    assert saved == infuse + n * dim**2 + 10 * dim
    layer = torch.nn.Linear(3, 4)
    assert count_parameters(layer) == 16
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
@pytest.mark.parametrize("options", [{}, {"head": "compressed"}, {"mlp_ratio": 3, "lookup_mlp_ratio": 1}], ids=str)
def test_closed_form_is_exact_at_any_image_size_and_head(path, options):
    with torch.device("meta"):
        model = create_model("lookupvit_tiny_patch4_32", depth=2, num_classes=7, path=path, **options)
    for img_size in (32, (40, 24)):  # the second resizes the positions too
        for size in ((3, 3), (2, 5), (8, 6)):
            for head in (None, "compressed") if options.get("head") else (None, "compressed", "lookup"):
                terms = model_macs(model, img_size, size, head=head)
                assert count_macs(model, img_size, size, head) == sum(terms.values())


@pytest.mark.parametrize("path", ["plain", "absorbed"])
def test_closed_form_is_exact_with_fresh_scores(path):
    with torch.device("meta"):
        model, reusing = (
            create_model("lookupvit_tiny_patch4_32", depth=2, path=path, reuse=reuse)
            for reuse in ("fresh", "transpose")
        )
    for size in ((3, 3), (2, 5)):
        terms, without = model_macs(model, 32, size), model_macs(reusing, 32, size)
        assert count_macs(model, 32, size) == sum(terms.values())
        n, m, dim = 64, size[0] * size[1], 192
        assert terms["infuse"] - without["infuse"] == 2 * ((n + m) * dim * dim + n * m * dim)


def test_closed_form_of_a_vit_is_exact():
    with torch.device("meta"):
        vit = create_model("vit_tiny_patch4_32", depth=2, num_classes=7)
    for img_size in (32, (40, 24)):
        assert count_macs(vit, img_size) == sum(vit_macs(vit, img_size).values())


def test_embedding_by_hand():
    with torch.device("meta"):
        model = create_model("lookupvit_tiny_patch4_32", depth=1)
    assert embedding_macs(model) == 64 * 48 * 192
    # positions from 8x8 to 10x6: rows first, (10 * 8) * 8, then columns, (10 * 6) * 8
    assert embedding_macs(model, (40, 24)) == 60 * 48 * 192 + (640 + 480) * 192
