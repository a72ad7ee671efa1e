"""Named video models, and what they cost."""

import pytest
import torch
from video_cost import count_video_macs, video_macs

from lookupvit import create_model, list_models


@pytest.mark.parametrize("name", list_models("*vivit_*"))
def test_every_name_builds_and_has_its_sizes(name):
    with torch.device("meta"):
        net = create_model(name, depth=1, temporal_depth=1, num_classes=3)
    kind, patch, size = name.split("_")[-3:]
    assert net.factorised == (kind == "factorised") and net.img_size == (int(size),) * 2
    assert f"patch{net.patch_size[0]}x{net.tubelet_size}" == patch
    assert net(torch.empty(2, 3, net.num_frames, *net.img_size, device="meta")).shape == (2, 3)


def test_every_lookupvivit_has_its_vivit():
    names = [name.removeprefix("lookupvivit_") for name in list_models("lookupvivit_*")]
    assert names == [name.removeprefix("vivit_") for name in list_models("vivit_*")] and len(names) == 12


@pytest.mark.parametrize("name", list_models("*vivit_*_patch16x2_224"))
@pytest.mark.parametrize("clip", [{}, {"num_frames": 16, "img_size": (256, 192)}], ids=str)
def test_measured_cost_equals_the_formula(name, clip):
    with torch.device("meta"):
        net = create_model(name, depth=2)
    assert count_video_macs(net, **clip) == pytest.approx(sum(video_macs(net, **clip).values()), rel=1e-3)


@pytest.mark.parametrize("model", ["joint", "factorised"])
@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
@pytest.mark.parametrize("options", [{}, {"cross_norm": "projection"}, {"infuse": False}, {"depth": 1}], ids=str)
def test_measured_cost_of_every_path_and_size(model, path, options):
    with torch.device("meta"):
        net = create_model(f"lookupvivit_small_{model}_patch8x2_32", **{"depth": 2, "path": path, **options})
    for size in ((8, 2, 2), (8, 4, 1)):
        expected = sum(video_macs(net, compressed_size=size).values())
        assert count_video_macs(net, compressed_size=size) == pytest.approx(expected, rel=1e-3)
    if model == "joint":
        expected = sum(video_macs(net, head="compressed").values())
        assert count_video_macs(net, head="compressed") == pytest.approx(expected, rel=1e-3)


def test_base_at_224_by_hand():
    # N = 16 x 14 x 14 lookup tokens, D = 768, 12 blocks, tubelets of 1536 values, 400 classes
    n, m, dim = 3136, 200, 768
    with torch.device("meta"):
        joint = create_model("lookupvivit_base_joint_patch16x2_224", path="plain")
        plain = {m: create_model(f"vivit_base_{m}_patch16x2_224") for m in ("joint", "factorised")}
    terms = video_macs(joint)
    assert terms["gather"] + terms["refine"] + terms["infuse"] + terms["lookup_mlp"] == 12 * (
        (3 * n * m + 2 * m * m) * dim + (4 * n + 15 * m) * dim**2
    )
    embedding = n * 1536 * dim
    assert sum(video_macs(plain["joint"]).values()) == embedding + 12 * (2 * n * n * dim + 12 * n * dim**2) + dim * 400
    spatial, temporal = 16 * 12 * (2 * 196**2 * dim + 12 * 196 * dim**2), 4 * (2 * 17**2 * dim + 12 * 17 * dim**2)
    assert sum(video_macs(plain["factorised"]).values()) == embedding + spatial + temporal + dim * 400
    with pytest.raises(ValueError, match="a plain ViViT has no compressed tokens"):
        video_macs(plain["joint"], compressed_size=(1, 1, 1))


def test_lookupvivit_costs_at_most_half_of_its_vivit():
    for name in list_models("lookupvivit_*"):
        with torch.device("meta"):
            ours, plain = create_model(name), create_model(name.removeprefix("lookup"))
        assert 2 * sum(video_macs(ours).values()) <= sum(video_macs(plain).values()), name
