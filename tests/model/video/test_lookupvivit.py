"""Video models against an independent naive implementation, and their interface."""

import pytest
import torch
from naive_video import lookupvivit as naive_lookupvivit
from naive_video import vivit as naive_vivit

from lookupvit import LookupViT
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.model.video.vivit import ViViT

MODELS = ("joint", "factorised")
TUBELET = (2, 4, 4)
TINY = {
    "num_frames": 6,
    "img_size": (8, 12),
    "tubelet_size": 2,
    "patch_size": 4,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "temporal_depth": 2,
}
SIZE = {"joint": (2, 1, 2), "factorised": (1, 2)}


def perturbed(cls: type = LookupViViT, model: str = "joint", **options):
    """A tiny float64 model whose every parameter (norms and biases too) is random, so that none can hide."""
    torch.manual_seed(0)
    if cls is LookupViViT:
        options = {"compressed_size": SIZE[model], **options}
    net = cls(model=model, **{**TINY, **options}).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def clips(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
def test_lookupvivit_equals_naive_float64(model, path):
    net, x = perturbed(model=model, path=path), clips(2, 3, 6, 8, 12)
    with torch.no_grad():
        expected = naive_lookupvivit(net.state_dict(), x, TUBELET, 2, 3, SIZE[model], model, temporal_depth=2)
        assert (net(x) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("head", ["compressed", "lookup"])
def test_one_head_of_a_joint_model_equals_naive_float64(head):
    x = clips(1, 3, 6, 8, 12)
    for net in (perturbed(head=head), perturbed()):
        with torch.no_grad():
            expected = naive_lookupvivit(net.state_dict(), x, TUBELET, 2, 3, SIZE["joint"], head=head)
            assert (net(x, head=head) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("model", MODELS)
def test_vivit_equals_naive_float64(model):
    net, x = perturbed(ViViT, model), clips(2, 3, 6, 8, 12)
    with torch.no_grad():
        expected = naive_vivit(net.state_dict(), x, TUBELET, 2, 3, model, temporal_depth=2)
        assert (net(x) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", [(4, 12, 8), (8, 8, 16)], ids=str)
def test_other_clips_and_compressed_sizes_equal_naive(model, shape):
    x, options = clips(1, 3, *shape), {"temporal_depth": 2, "pos_grid": (3, 2, 3)}
    net, size = perturbed(model=model), (2, 2, 1) if model == "joint" else (2, 1)
    with torch.no_grad():
        expected = naive_lookupvivit(net.state_dict(), x, TUBELET, 2, 3, size, model, **options)
        assert (net(x, compressed_size=size) - expected).abs().max() < 1e-9
        if model == "factorised":
            assert torch.equal(net(x, compressed_size=(shape[0] // 2, *size)), net(x, compressed_size=size))
            expected = naive_lookupvivit(net.state_dict(), x, TUBELET, 2, 3, SIZE[model], model, **options)
            assert (net(x) - expected).abs().max() < 1e-9  # its own size, whatever the number of frames
        plain = perturbed(ViViT, model)
        expected = naive_vivit(plain.state_dict(), x, TUBELET, 2, 3, model, **options)
        assert (plain(x) - expected).abs().max() < 1e-9


VARIANTS = [
    *((LookupViViT, "joint", {"head": head}) for head in ("both", "compressed", "lookup")),
    (LookupViViT, "joint", {"infuse": False}),
    (LookupViViT, "factorised", {}),
    (LookupViViT, "factorised", {"infuse": False, "cross_norm": "projection", "reuse": "renormalize"}),
    (LookupViViT, "factorised", {"depth": 1, "qkv_bias": False}),
    (ViViT, "joint", {}),
    (ViViT, "factorised", {}),
]


@pytest.mark.parametrize(("cls", "model", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("frames", [6, 4])
def test_every_parameter_gets_a_gradient(cls, model, options, frames):
    net = perturbed(cls, model, **options).train()
    net(clips(2, 3, frames, 8, 12)).square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [n for n, p in net.named_parameters() if p.grad.abs().max() == 0]


@pytest.mark.parametrize(("cls", "model", "options"), VARIANTS, ids=str)
def test_grad_checkpointing_changes_nothing(cls, model, options):
    grads = []
    for checkpointing in (False, True):
        net = perturbed(cls, model, **options).train()
        net.set_grad_checkpointing(checkpointing)
        net(clips(2, 3, 6, 8, 12)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("other", ["absorbed", "tiled"])
def test_every_path_equals_plain_forward_and_backward(model, other):
    results = []
    for path in ("plain", other):
        net, x = perturbed(model=model).train(), clips(2, 3, 6, 8, 12).requires_grad_()
        net.set_path(path)
        out = net(x)
        out.sin().sum().backward()
        results.append([out, x.grad, *(p.grad for p in net.parameters())])
    for plain, result in zip(*results, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["central_frame", "average"])
def test_one_time_index_equals_the_image_model(method):
    from video_init import load_image_weights

    torch.manual_seed(0)
    image = LookupViT(img_size=12, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3, compressed_size=2)
    image = image.double().eval()
    x = clips(2, 3, 12, 12)
    # the central frame of a tubelet of two is its second; the average of a still clip is the image
    first = torch.full_like(x, 7.0) if method == "central_frame" else x
    clip = torch.stack([first, x], dim=2)  # (B, C, 2, Y, X)
    for model, size in (("joint", (1, 2, 2)), ("factorised", (2, 2))):
        net = perturbed(model=model, num_frames=2, img_size=12, compressed_size=size, mlp_ratio=4.0)
        fresh = load_image_weights(net, image.state_dict(), method)
        tokens, expected = net.forward_features(clip), image.forward_features(x)
        torch.testing.assert_close(tokens.compressed, expected.compressed)
        assert (tokens.compressed_size, tokens.grid_size) == ((1, 2, 2), (1, 3, 3))
        if model == "joint":
            assert fresh == [name for name in net.state_dict() if name.startswith("heads.")]
            net.heads.load_state_dict(image.heads.state_dict())
            torch.testing.assert_close(net(clip), image(x))


def test_a_factorised_model_does_not_mix_time_before_the_temporal_transformer():
    net, x = perturbed(model="factorised"), clips(1, 3, 6, 8, 12)
    tokens = net.forward_features(x)
    assert tokens.compressed.shape == (1, 3 * 2, 12) and tokens.lookup is None
    assert (tokens.compressed_size, tokens.grid_size) == ((3, 1, 2), (3, 2, 3))
    shuffled = x.unflatten(2, (3, 2))[:, :, [2, 0, 1]].flatten(2, 3)  # whole tubelets change places
    lookup, grid = net.embed_images(shuffled)
    lookup = lookup - net.embed.pos_embed + net.embed.pos_embed.unflatten(1, (3, -1))[:, [2, 0, 1]].flatten(1, 2)
    moved = net.forward_tokens(lookup, grid)
    torch.testing.assert_close(
        moved.compressed.unflatten(1, (3, 2)), tokens.compressed.unflatten(1, (3, 2))[:, [2, 0, 1]]
    )
    assert (net.forward_head(moved) - net.forward_head(tokens)).abs().max() > 1e-3  # but time's order tells


@pytest.mark.parametrize("model", MODELS)
def test_intermediates_and_attention(model):
    net, x = perturbed(model=model), clips(2, 3, 6, 8, 12)
    tokens, kept = net.forward_intermediates(x, indices=[-1])
    M, N, rows = (4, 18, 2) if model == "joint" else (2, 6, 6)
    assert kept[0].attention.shape == (rows, 3, M, N)
    assert kept[0].compressed.shape == tokens.compressed.shape and kept[0].lookup.shape == (2, 18, 12)
    torch.testing.assert_close(net.norms["compressed"](kept[0].compressed), tokens.compressed)
    torch.testing.assert_close(net.forward_head(tokens), net(x))


def test_baselines_share_all_but_the_blocks():
    for model in MODELS:
        ours, plain = perturbed(model=model), perturbed(ViViT, model)
        for name in ("embed", "temporal"):
            a, b = (getattr(net, name) for net in (ours, plain))
            assert type(a) is type(b)
            if a is not None:
                assert [(n, p.shape) for n, p in a.named_parameters()] == [
                    (n, p.shape) for n, p in b.named_parameters()
                ]
        assert type(ours.heads["compressed"]) is type(plain.heads["pooled"])
        assert not [n for n, _ in plain.named_parameters() if n.split(".")[0] in ("vit", "norms")]


def test_layers_of_parameters_ascend_with_depth():
    for cls in (LookupViViT, ViViT):
        for model in MODELS:
            net = perturbed(cls, model)
            layers = {name: net.layer_id(name) for name, _ in net.named_parameters()}
            temporal = 2 if model == "factorised" else 0
            assert sorted(set(layers.values())) == list(range(net.num_layers)) and net.num_layers == 4 + temporal
            assert layers["embed.pos_embed"] == 0 and layers["blocks.1.norm1.weight"] == 2
            assert {layers[name] for name in layers if name.startswith("heads.")} == {net.num_layers - 1}
            assert net.no_weight_decay() <= set(layers)
            if temporal:
                assert layers["temporal.cls_token"] == layers["temporal.blocks.0.norm1.weight"] == 3
                assert layers["temporal.norm.weight"] == 5
                assert {"temporal.cls_token", "temporal.pos_embed"} <= net.no_weight_decay()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LookupViViT, {"model": "factorized"}, "model='factorized' is not known: choose one of joint, factorised"),
        (LookupViViT, {"num_frames": 7}, r"clip size \(7, 8, 12\) is not a multiple .* resize to \(8, 8, 12\)"),
        (LookupViViT, {"compressed_size": (2, 2)}, r"compressed_size \(2, 2\) has 2 axes, the lookup grid \(3, 2, 3\)"),
        (LookupViViT, {"model": "factorised", "head": "lookup"}, "head='lookup' does not go with model='factorised'"),
        (LookupViViT, {"temporal_depth": 0}, "temporal_depth=0 is no positive integer"),
        (ViViT, {"model": "both"}, "model='both' is not known"),
        (ViViT, {"tubelet_size": 0}, "tubelet_size=0 is no positive integer"),
    ],
)
def test_wrong_options_are_told(cls, options, message):
    options = {"compressed_size": 1, **options} if cls is LookupViViT else options
    with pytest.raises(ValueError, match=message) as error:
        cls(**{**TINY, **options})
    assert "\n" not in str(error.value)


def test_wrong_calls_are_told():
    joint, factorised, plain = perturbed(), perturbed(model="factorised"), perturbed(ViViT)
    with pytest.raises(
        ValueError, match=r"expected clips of shape \(B, 3, frames, height, width\), got \(1, 3, 8, 12\)"
    ):
        joint(clips(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"clip size \(5, 8, 12\) is not a multiple"):
        joint(clips(1, 3, 5, 8, 12))
    with pytest.raises(ValueError, match="its first entry must be 2 for this clip"):
        factorised(clips(1, 3, 4, 8, 12), compressed_size=(3, 1, 1))
    with pytest.raises(ValueError, match="cannot run head='lookup'"):
        factorised(clips(1, 3, 4, 8, 12), head="lookup")
    with pytest.raises(ValueError, match="a plain ViViT has no compressed tokens"):
        plain(clips(1, 3, 6, 8, 12), compressed_size=(1, 1, 1))
