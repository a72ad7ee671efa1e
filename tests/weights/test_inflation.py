"""Tubelet kernels and positions from image weights."""

import pytest
import timm
import torch
from video_init import load_image_weights

from lookupvit import LookupViT, ViT
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT
from lookupvit.weights.resize import fit_positions, inflate_patch_embed

IMAGE = {"img_size": 12, "patch_size": 4, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}
CLIP = {**IMAGE, "num_frames": 8, "tubelet_size": 4, "num_classes": 9, "temporal_depth": 1}


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_inflated_kernels_see_what_the_image_model_saw(t):
    torch.manual_seed(0)
    weight, image = torch.randn(6, 3, 4, 5, dtype=torch.float64), torch.randn(1, 3, 4, 5, dtype=torch.float64)
    expected = (weight * image).sum((1, 2, 3))
    clip = torch.randn(1, 3, t, 4, 5, dtype=torch.float64)
    clip[:, :, t // 2] = image
    central = inflate_patch_embed(weight, t, "central_frame")
    torch.testing.assert_close((central * clip).sum((1, 2, 3, 4)), expected)
    average = inflate_patch_embed(weight, t, "average")
    torch.testing.assert_close((average * clip).sum((1, 2, 3, 4)), (weight * clip.mean(2)).sum((1, 2, 3)))
    assert central.shape == average.shape == (6, 3, t, 4, 5)
    central.zero_()
    assert weight.abs().sum() > 0  # a copy


def test_positions_are_tiled_over_time_and_resized_over_space():
    pos = torch.randn(1, 6, 4)
    tiled = fit_positions(pos, (2, 3), (5, 2, 3)).unflatten(1, (5, 6))
    assert all(torch.equal(tiled[:, t], pos) for t in range(5))
    constant = torch.ones(1, 6, 4)
    torch.testing.assert_close(fit_positions(constant, (2, 3), (2, 4, 1)), torch.ones(1, 8, 4))


@pytest.mark.parametrize("model", ["joint", "factorised"])
def test_lookupvivit_takes_all_of_a_lookupvit(model):
    image = LookupViT(**IMAGE, compressed_size=2)
    net = LookupViViT(model, **CLIP, compressed_size=1)
    fresh = load_image_weights(net, image.state_dict(), "average")
    assert {name.split(".")[0] for name in fresh} == ({"heads", "temporal"} if model == "factorised" else {"heads"})
    own, theirs = net.state_dict(), image.state_dict()
    for name in set(own) - set(fresh) - {"embed.proj.weight", "embed.pos_embed"}:
        assert torch.equal(own[name], theirs[name]), name
    assert torch.equal(own["embed.proj.weight"][:, :, 3] * 4, theirs["embed.proj.weight"])
    assert torch.equal(own["embed.pos_embed"][:, 9:], theirs["embed.pos_embed"])


def test_vivit_takes_this_packages_vit_and_timms():
    image = ViT(**IMAGE).eval()
    net = ViViT("joint", **{**CLIP, "num_frames": 4, "num_classes": 5}).eval()
    load_image_weights(net, image.state_dict())
    x = torch.randn(2, 3, 12, 12)
    clip = torch.zeros(2, 3, 4, 12, 12)
    clip[:, :, 2] = x
    torch.testing.assert_close(net.forward_features(clip).lookup, image.forward_features(x).lookup)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=5, embed_dim=12, depth=2, num_heads=3)
    net = ViViT("factorised", **{**CLIP, "patch_size": 16, "img_size": 48})
    load_image_weights(net, theirs.state_dict())  # with a class token and its position, which are left behind
    assert torch.equal(net.embed.pos_embed[:, 9:], theirs.pos_embed[:, 1:])
    assert torch.equal(net.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)


def test_what_does_not_fit_is_told():
    net = LookupViViT("joint", **CLIP, compressed_size=1)

    def weights(**options):
        return LookupViT(**{**IMAGE, "compressed_size": 1, **options}).state_dict()

    cases = [
        (ViT(**IMAGE).state_dict(), "have no blocks.0.cross.norm_compressed.weight"),
        (weights(depth=1), "have no blocks.1.cross.norm_compressed.weight .*for a LookupViViT of depth 2"),
        (weights(depth=3), "go on with blocks.2.cross"),
        (weights(embed_dim=24), r"embed.pos_embed has shape \(1, 18, 24\), this model's \(1, 18, 12\)"),
        (weights(patch_size=6), r"embed.proj.weight has shape"),
        (weights(img_size=(12, 8)), "6 positions are no square of tokens"),
        ({"a": torch.zeros(1)}, "no weights of an image model"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            load_image_weights(net, state)
        assert "\n" not in str(error.value)
    load_image_weights(net, weights(img_size=(12, 8)), image_grid=(3, 2))
    with pytest.raises(ValueError, match="method='middle' is not known: choose one of central_frame, average"):
        load_image_weights(net, weights(), "middle")
    with pytest.raises(ValueError, match=r"a patch kernel has the axes \(D, C, y, x\)"):
        inflate_patch_embed(torch.zeros(2, 3), 2)
