"""The model against an independent naive implementation, and its interface."""

import pytest
import torch
from naive import lookupvit as naive_lookupvit

from lookupvit import LookupViT, LookupViViT, create_model
from lookupvit.model.products.paths import Paths, choose_paths

TINY = {"patch_size": (4, 4), "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
OPTIONS = [
    {},
    {"reuse": "mean"},
    {"reuse": "renormalize"},
    {"reuse": "fresh"},
    {"residual_init": 0.5},
    {"residual_init": 0.5, "reuse": "mean", "head": "compressed"},
    {"cross_norm": "projection", "reuse": "fresh"},
    {"cross_norm": "projection"},
    {"cross_norm": "projection", "reuse": "renormalize"},
    {"antialias": False},
    {"head": "compressed"},
    {"head": "lookup"},
    {"infuse": False},
    {"infuse": False, "head": "compressed"},
    {"lookup_mlp_ratio": 1.0, "qkv_bias": False},
]


def perturbed(**kwargs):
    """A tiny float64 model whose every parameter (norms and biases too) is random, so that none can hide."""
    torch.manual_seed(0)
    model = LookupViT(**{**TINY, "img_size": 20, "compressed_size": (2, 3), **kwargs}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("path", ["plain", "absorbed"])
@pytest.mark.parametrize("img_size", [(20, 20), (16, 24)], ids=str)
def test_equals_naive_float64(options, path, img_size):
    model = perturbed(img_size=img_size, path=path, **options)
    images = torch.randn(1, 3, *img_size, dtype=torch.float64)
    naive_options = {k: v for k, v in options.items() if k in ("reuse", "cross_norm", "antialias", "head", "infuse")}
    with torch.no_grad():
        expected = naive_lookupvit(model.state_dict(), images, (4, 4), 2, 3, (2, 3), **naive_options)
        assert (model(images) - expected).abs().max() < 1e-9


def test_other_image_and_compressed_size_equal_naive():
    model = perturbed(img_size=20)
    images = torch.randn(1, 3, 12, 28, dtype=torch.float64)
    expected = naive_lookupvit(model.state_dict(), images, (4, 4), 2, 3, (3, 1), pos_grid=(5, 5))
    assert (model(images, compressed_size=(3, 1)) - expected).abs().max() < 1e-9


def test_inference_with_one_head_of_two_equals_naive_and_skips_the_end():
    model = perturbed()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    expected = naive_lookupvit(model.state_dict(), images, (4, 4), 2, 3, (2, 3), head="compressed")
    model.blocks[-1].lookup_mlp = None  # would fail if it ran
    tokens = model.forward_features(images, head="compressed")
    assert tokens.lookup is None and tokens.compressed.shape == (2, 6, 12)
    assert (model.forward_head(tokens) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("path", ["plain", "absorbed"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5)], ids=str)
def test_every_parameter_gets_a_gradient(options, path, size):
    model = perturbed(path=path, **options).train()
    model(torch.randn(2, 3, 20, 20, dtype=torch.float64), compressed_size=size).square().sum().backward()
    # with one compressed token the inner softmax is the constant one: its Q and K have a gradient of zero, not none
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead
    if size != (1, 1):
        # key biases of the plain self-attention have a zero gradient in exact arithmetic, hence the sum over the tensor
        assert not [name for name, p in model.named_parameters() if p.grad.abs().max() == 0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("other", ["absorbed", "tiled"])
def test_every_path_equals_plain_forward_and_backward(options, drop_path, other):
    if other == "tiled" and options.get("reuse") in ("renormalize", "fresh"):
        with pytest.raises(ValueError, match=f"path='tiled' does not work with reuse='{options['reuse']}'"):
            perturbed(path=other, **options)
        return
    results = []
    for path in ("plain", other):
        model = perturbed(path=path, drop_path_rate=drop_path, **options).train()
        images = torch.randn(3, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        images.requires_grad_()
        torch.manual_seed(2)  # same branches dropped
        out = model(images)
        out.sin().sum().backward()
        results.append([out, images.grad, *(p.grad for p in model.parameters())])
    for plain, result in zip(*results, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["plain", "absorbed", "tiled"])
def test_the_mean_of_what_flows_back_depends_on_no_size(path):
    """Equal scores make every entry of A one over N: `mean` then gives each lookup token the mean of the values."""
    for reuse, factor in (("transpose", None), ("mean", 1.0)):
        cross = LookupViT(**TINY, img_size=20, compressed_size=2, reuse=reuse, path=path).double().blocks[0].cross
        torch.nn.init.zeros_(cross.q.weight)
        for n, m in ((25, 4), (25, 9), (100, 4)):
            compressed, lookup = (torch.randn(2, k, 12, dtype=torch.float64) for k in (m, n))
            update = cross.infuse(compressed, cross.gather(compressed, lookup)[1], lookup=lookup)
            values = cross.v_infuse(cross.norm_infuse(compressed)).mean(dim=1, keepdim=True)
            expected = cross.proj_infuse((m / n if factor is None else factor) * values).expand_as(lookup)
            torch.testing.assert_close(update, expected, rtol=0, atol=1e-12)


def test_compressed_tokens_have_no_parameters_and_full_size_is_the_lookup_grid():
    small, large = LookupViT(**TINY, img_size=20, compressed_size=1), LookupViT(**TINY, img_size=20, compressed_size=5)
    assert [p.shape for p in small.parameters()] == [p.shape for p in large.parameters()]
    kept = []
    model = perturbed()
    lookup, grid = model.embed_images(torch.randn(1, 3, 20, 20, dtype=torch.float64))
    for block in model.blocks:  # remember what enters
        block.register_forward_pre_hook(lambda _, args: kept.append(args))
    model.forward_tokens(lookup, grid, (5, 5))
    assert torch.equal(kept[0][0], lookup)


def test_drop_path_drops_whole_samples():
    model = LookupViT(**TINY, img_size=20, compressed_size=2, drop_path_rate=1.0).train()
    images = torch.randn(2, 3, 20, 20)
    _, kept = model.forward_intermediates(images)
    # the last block drops every branch: nothing changes in it
    assert torch.equal(kept[0].compressed, kept[1].compressed) and torch.equal(kept[0].lookup, kept[1].lookup)


def test_intermediates_and_attention():
    model = perturbed()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    tokens, kept = model.forward_intermediates(images, indices=[-1], compressed_size=(3, 3))
    assert len(kept) == 1 and kept[0].attention.shape == (2, 3, 9, 25)
    torch.testing.assert_close(kept[0].attention.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
    torch.testing.assert_close(model.norms["lookup"](kept[0].lookup), tokens.lookup)
    torch.testing.assert_close(model.forward_head(tokens), model(images, (3, 3)))


def test_grad_checkpointing_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        model = perturbed(grad_checkpointing=checkpointing).train()
        images = torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        model(images).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_works_after_inference_mode_and_under_autocast():
    model = LookupViT(**TINY, img_size=20, compressed_size=(4, 2))
    images = torch.randn(2, 3, 20, 20)
    with torch.inference_mode():
        expected = model(images)
    loss = model(images)  # the cached resize matrices must not be inference tensors
    loss.sum().backward()
    torch.testing.assert_close(loss, expected)
    for path in ("plain", "absorbed", "tiled"):
        model.set_path(path)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(images)
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.05)
        out.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_path_that_is_gone_is_auto_with_one_warning():
    """As an old checkpoint or config.yaml may say; "measured" never changed the function."""
    images = torch.randn(3, 3, 20, 20)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="path='measured' is no more: it counts as path='auto'") as warned:
        model = LookupViT(**TINY, img_size=20, path="measured")
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    torch.manual_seed(0)
    want = LookupViT(**TINY, img_size=20)
    assert {block.cross.path for block in model.blocks} == {"auto"}
    assert torch.equal(model(images), want(images))
    model.set_path("plain")
    with pytest.warns(UserWarning, match="measured") as warned:
        model.set_path("measured")
    assert len(warned) == 1 and {block.cross.path for block in model.blocks} == {"auto"}


@pytest.mark.parametrize("video", [None, "joint", "factorised"])
def test_both_residual_streams_stay_float32_under_autocast(video):
    if video is None:
        model, images = LookupViT(**TINY, img_size=20, compressed_size=(2, 3)), torch.randn(2, 3, 20, 20)
    else:
        options = {"model": video, "num_frames": 4, "img_size": 20, "compressed_size": (2, 2, 3)}
        model, images = LookupViViT(**{**TINY, **options}), torch.randn(2, 3, 4, 20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        _, kept = model.forward_intermediates(images)
    assert {stream.dtype for tokens in kept for stream in (tokens.compressed, tokens.lookup)} == {torch.float32}


def test_large_attention_is_tiled_by_itself_when_training(monkeypatch):
    assert choose_paths(3136, 200, 768, 12, training=True) == Paths(False, False, False, True)
    assert not choose_paths(3136, 200, 768, 12, training=False).tiled  # nothing is stored anyway
    assert choose_paths(196, 25, 768, 12, training=True) == Paths(True, True, True, False)
    assert not choose_paths(196, 100, 768, 12, training=True).tiled
    monkeypatch.setattr("lookupvit.model.products.paths.TILED_FROM", 0)
    model = LookupViT(**TINY, img_size=20, compressed_size=4)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(tuple(t.shape)) or t, lambda t: t):
        model(torch.randn(2, 3, 20, 20))
    assert stored and not [shape for shape in stored if {16, 25} <= set(shape[1:])]  # neither (M, N) nor (N, M)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": 30}, r"image size \(30, 30\) is not a multiple of the patch size \(4, 4\): resize to \(32, 32\)"),
        ({"compressed_size": (6, 2)}, r"compressed_size \(6, 2\) does not fit the lookup grid \(5, 5\)"),
        ({"compressed_size": (2, 2, 2)}, "3 axes"),
        ({"embed_dim": "wide"}, "embed_dim='wide' is no positive integer"),
        ({"depth": 0}, "depth=0 is no positive integer"),
        ({"num_heads": 5}, "num_heads=5 does not divide embed_dim=12"),
        ({"reuse": "both"}, "choose one of transpose, mean, renormalize, fresh"),
        ({"residual_init": "ones"}, r"residual_init='ones' is not known: choose one of default, zero, or a positive"),
        ({"residual_init": True}, r"residual_init=True is not known"),
        ({"residual_init": 0}, r"residual_init=0 is not known"),
        ({"head": "cls"}, "choose one of both, compressed, lookup"),
        ({"infuse": False, "head": "lookup"}, "never reads the compressed tokens"),
    ],
)
def test_bad_arguments_are_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LookupViT(**{**TINY, "img_size": 20, "compressed_size": 2, **kwargs})
    assert "\n" not in str(error.value)


def test_bad_inputs_are_one_line():
    model = LookupViT(**TINY, img_size=20, compressed_size=2, head="compressed")
    with pytest.raises(ValueError, match=r"image size \(20, 22\).*resize to \(20, 24\)"):
        model(torch.zeros(1, 3, 20, 22))
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, height, width\), got \(1, 1, 20, 20\)"):
        model(torch.zeros(1, 1, 20, 20))
    with pytest.raises(ValueError, match="does not fit the lookup grid"):
        model(torch.zeros(1, 3, 20, 20), compressed_size=(9, 9))
    with pytest.raises(ValueError, match="built with head='compressed' alone"):
        model(torch.zeros(1, 3, 20, 20), head="both")


def test_vit_baseline_is_timms_and_takes_the_same_calls():
    model = create_model("vit_tiny_patch4_32", num_classes=7, depth=2).eval()
    images = torch.randn(2, 3, 32, 40)
    tokens = model.forward_features(images)
    assert tokens.compressed is None and tokens.lookup.shape == (2, 80, 192)
    expected = model.vit.head(model.vit.forward_features(images).mean(1))
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.forward_logits(tokens)["pooled"], expected)
    with pytest.raises(ValueError, match="plain ViT has no compressed tokens"):
        model(images, compressed_size=(3, 3))
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        model(torch.zeros(1, 3, 30, 32))
    model.train()(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["lookupvit_tiny_patch4_32", "vit_tiny_patch4_32"])
def test_layer_ids_cover_every_parameter(name):
    model = create_model(name, depth=3)
    ids = {key: model.layer_id(key) for key, _ in model.named_parameters()}
    assert set(ids.values()) == set(range(model.num_layers)) == {0, 1, 2, 3, 4}
    assert model.no_weight_decay() <= set(ids)
    assert {i for key, i in ids.items() if "pos_embed" in key or key.split(".", 1)[1] == "proj.weight"} == {0}


def test_grad_checkpointing_with_a_frozen_beginning():
    """The blocks learn although none of what they are given needs a gradient."""
    model = perturbed(grad_checkpointing=True).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks", "heads")))
    size = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model(images).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("blocks.0."))
