"""LookupViT from a plain ViT: at first the ViT itself, and every branch able to learn."""

import pytest
import timm
import torch
import torch.nn.functional as F

from lookupvit import LookupViT, ViT
from lookupvit.interop.warm_start import Gains, find_weights, initialise, warm_start
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.weights.load import save_weights

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}
POOLED = {"class_token": False, "global_pool": "avg", "fc_norm": False}


def perturbed(model):
    """Every parameter random, norms and biases too, so that none can hide."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def vit(**kwargs):
    torch.manual_seed(3)
    return perturbed(timm.create_model("vit_tiny_patch16_224", **{**TINY, **POOLED, **kwargs}))


def lookupvit(**kwargs):
    torch.manual_seed(1)
    return LookupViT(**{**TINY, "compressed_size": (4, 4), **kwargs}).eval()


def started(source, gains=Gains(), **kwargs):  # noqa: B008
    model = lookupvit(**kwargs)
    return model, warm_start(model, source.state_dict(), gains=gains, verbose=False)


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": False}, {"init_values": 0.5}, {"mlp_ratio": 2.0}, {"ours": 1e-5}], ids=str
)
def test_with_as_many_tokens_as_patches_it_is_the_vit(options):
    ratio = {"mlp_ratio": 2.0} if "mlp_ratio" in options else {}
    options = dict(options)
    ours = {"residual_init": options.pop("ours")} if "ours" in options else {}
    theirs, (model, _) = vit(**options), started(vit(**options), **ratio, **ours)
    torch.testing.assert_close(model(X, head="compressed"), theirs(X), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(X), theirs(X) / 2, rtol=0, atol=1e-5)  # the lookup classifier starts at zero
    assert torch.equal(model(X).argmax(1), theirs(X).argmax(1))


def test_with_fewer_tokens_it_is_the_vit_on_resized_tokens():
    theirs, (model, _) = vit(), started(vit())
    tokens = theirs.patch_embed(X) + theirs.pos_embed  # (B, 16, D)
    small = F.interpolate(tokens.transpose(1, 2).unflatten(2, (4, 4)), size=(2, 2), mode="bilinear", antialias=True)
    expected = theirs.forward_head(theirs.norm(theirs.blocks(small.flatten(2).transpose(1, 2))))
    torch.testing.assert_close(model(X, compressed_size=(2, 2), head="compressed"), expected, rtol=0, atol=1e-5)


def test_the_cross_attention_is_the_vits_attention_of_compressed_to_lookup_tokens():
    theirs, (model, _) = vit(), started(vit(), gains=Gains(gather=1.0))
    lookup, _ = model.embed_images(X)
    update, _ = model.blocks[0].cross.gather(lookup, lookup)
    torch.testing.assert_close(update, theirs.blocks[0].attn(theirs.blocks[0].norm1(lookup)), rtol=0, atol=1e-5)


def test_the_lookup_mlp_is_the_heaviest_part_of_the_vits():
    theirs, (model, _) = vit(), started(vit(), gains=Gains(lookup_mlp=1.0), lookup_mlp_ratio=4.0)
    x = torch.randn(2, 5, 12)
    expected = theirs.blocks[1].mlp(theirs.blocks[1].norm2(x))
    torch.testing.assert_close(model.blocks[1].lookup_mlp(x), expected, rtol=0, atol=1e-5)  # all units: the same MLP
    model, report = started(vit(), gains=Gains(lookup_mlp=1.0))
    mlp = theirs.blocks[0].mlp
    weight = [(mlp.fc1.weight[j].norm() * mlp.fc2.weight[:, j].norm()).item() for j in range(48)]
    kept = sorted(sorted(range(48), key=lambda j: -weight[j])[:6])
    assert torch.equal(model.blocks[0].lookup_mlp.fc1.weight, mlp.fc1.weight[kept])
    assert torch.equal(model.blocks[0].lookup_mlp.fc2.weight, mlp.fc2.weight[:, kept])
    assert report.derived["blocks.0.lookup_mlp.fc1.weight"] == "6 of the ViT's 48 hidden units"


def test_every_branch_learns_from_the_first_steps():
    model, _ = started(vit(), compressed_size=(2, 2))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(4):  # a gain of zero lets the gradient through one layer more each step
        optimizer.zero_grad()
        logits = model.forward_logits(model.forward_features(X))
        sum(F.cross_entropy(z, torch.tensor([0, 3])) for z in logits.values()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize(
    "options",
    [
        {"head": "compressed"},
        {"head": "lookup"},
        {"infuse": False},
        {"cross_norm": "projection"},
        {"qkv_bias": True, "num_classes": 0},
        {"img_size": (48, 64), "patch_size": 16, "num_classes": 3},
    ],
    ids=str,
)
def test_every_variant_starts_with_everything_explained(options):
    model, report = started(vit(class_token=True, reg_tokens=1), compressed_size=(2, 2), **options)
    names = {*report.loaded, *report.derived, *report.resized, *report.initialised}
    assert {name for name, _ in model.named_parameters()} <= names and not report.errors
    assert {"cls_token", "reg_token"} <= set(report.unexpected)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.randn(1, 3, *model.img_size)).isfinite().all()


def test_a_video_model_starts_from_an_image_vit():
    small = {key: TINY[key] for key in ("patch_size", "num_classes", "embed_dim", "depth", "num_heads")}
    model = LookupViViT(num_frames=2, img_size=32, compressed_size=(1, 4, 4), **small).eval()
    theirs = vit()
    scaled = LookupViViT("factorised", 2, 32, compressed_size=(2, 2), residual_init=0.1, **small)
    derived = warm_start(scaled, theirs.state_dict(), verbose=False).derived
    for name, gamma in scaled.named_parameters():  # one where the ViT has the block; it has none of time
        if name.endswith(".gamma"):
            assert (gamma == (0.1 if name.startswith("temporal.") else 1.0)).all() and (name in derived) == (
                gamma == 1
            ).all()
    report = warm_start(model, theirs.state_dict(), verbose=False)
    assert "patch 8x8 to 2x8x8" in report.resized.values()
    still = X.unsqueeze(2).repeat(1, 1, 2, 1, 1)  # one time index: the clip is the image
    torch.testing.assert_close(model(still, head="compressed"), theirs(X), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_one_line():
    for source, message in (
        (vit(embed_dim=18), "of width 18, this model of 12: build it with embed_dim=18"),
        (vit(depth=1), "have 1 blocks, this model 2: build it with depth=1"),
        (vit(mlp_ratio=2.0), r"blocks.0.mlp.fc1.weight has shape \(24, 12\) in them and \(48, 12\) here"),
        (vit(pre_norm=True), "a norm after its embedding"),
        (vit(qk_norm=True), "norms on queries"),
        (vit(pos_embed="none"), "no learned positions"),
        (lookupvit(), "are no plain ViT's"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            started(source)
        assert "\n" not in str(error.value)


def test_sources_are_files_folders_and_timm_names(tmp_path, monkeypatch):
    ours = perturbed(ViT(**TINY))
    save_weights(ours, tmp_path / "vit.ckpt")
    model = lookupvit()
    report = initialise(model, tmp_path / "vit.ckpt", verbose=False)
    assert not report.notes  # the checkpoint says how many heads there are
    torch.testing.assert_close(model(X, head="compressed"), ours(X), rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "folder")
    again = lookupvit(img_size=48)
    assert list(initialise(again, tmp_path / "folder", verbose=False).resized) == ["embed.pos_embed"]
    with pytest.raises(ValueError, match="have 3 attention heads, this model 2"):
        initialise(lookupvit(num_heads=2), tmp_path / "vit.ckpt", verbose=False)
    with pytest.raises(FileNotFoundError, match="is neither a file of weights nor a model of timm's"):
        initialise(model, "vit_enormous")

    fetched, theirs = {}, vit()

    def create(name, pretrained):
        fetched.update(name=name, pretrained=pretrained)
        if "resnet" in name:
            return torch.nn.Linear(1, 1)
        if "small" in name:
            raise OSError("no network\nat all")
        return theirs

    monkeypatch.setattr("lookupvit.interop.warm_start.timm.create_model", create)
    weights = find_weights("vit_tiny_patch16_224.augreg_in21k")
    assert fetched == {"name": "vit_tiny_patch16_224.augreg_in21k", "pretrained": True}
    assert (weights.grid, weights.num_heads) == ((4, 4), 3)
    with pytest.raises(ValueError, match=r"could not fetch vit_small_patch16_224 \(OSError\): download the file"):
        find_weights("vit_small_patch16_224")
    with pytest.raises(ValueError, match="resnet18 is no plain ViT but a Linear"):
        find_weights("resnet18")
