"""Weights files into models of other sizes: the operators, what is explained, and what is an error."""

import io
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lookupvit import LookupViT, ViT, create_model
from lookupvit.model.video.lookupvivit import LookupViViT
from lookupvit.weights.load import load_weights, read_weights, save_weights
from lookupvit.weights.resize import fit_kernel, guess_grid, resize_kernel, resize_positions
from lookupvit.weights.vit_names import _have_positions

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}


def tiny(cls=LookupViT, seed=0, **kwargs):
    """A tiny model whose every parameter is random, norms and biases too."""
    torch.manual_seed(seed)
    if cls is LookupViT:
        kwargs = {"compressed_size": (2, 2), **kwargs}
    model = cls(**{**TINY, **kwargs}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def quiet(model, source, **kwargs):
    return load_weights(model, source, verbose=False, **kwargs)


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


# -- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (4, 9)], ids=str)
def test_a_patch_that_grows_with_its_kernel_gives_the_same_feature(size):
    kernel, patch = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    larger = F.interpolate(patch, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(F.conv2d(larger, resize_kernel(kernel, size)), F.conv2d(patch, kernel))


def test_a_tubelet_that_grows_with_its_kernel_gives_the_same_feature():
    kernel, tube = torch.randn(6, 3, 2, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    larger = F.interpolate(tube, size=(3, 6, 5), mode="trilinear", align_corners=False)
    torch.testing.assert_close(F.conv3d(larger, resize_kernel(kernel, (3, 6, 5))), F.conv3d(tube, kernel))


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (12, 6)], ids=str)
def test_kernels_are_resized_as_timm_does_it(size):
    kernel = torch.randn(6, 3, 8, 8)
    expected = resample_patch_embed(kernel, list(size), interpolation="bilinear", antialias=True)
    torch.testing.assert_close(resize_kernel(kernel, size), expected, rtol=1e-4, atol=1e-5)


def test_an_image_kernel_in_a_tubelet_sees_one_frame_or_their_mean():
    kernel, frame = torch.randn(6, 3, 4, 4), torch.randn(2, 3, 4, 4)
    still = frame.unsqueeze(2).repeat(1, 1, 2, 1, 1)
    for method in ("central_frame", "average"):
        torch.testing.assert_close(
            F.conv3d(still, fit_kernel(kernel, (2, 4, 4), method))[:, :, 0],
            F.conv2d(frame, kernel),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize(("small", "large"), [((4, 4), (6, 9)), ((2, 4, 4), (3, 7, 8)), ((8, 8), (9, 16))], ids=str)
def test_positions_that_grow_and_shrink_back_are_the_same(small, large):
    count = torch.tensor(small).prod()
    positions = torch.randn(1, int(count), 6)
    grown = resize_positions(positions, small, large)
    if len(small) == 2:  # (1, N, D) -> (1, D, h, w)
        torch_grown = F.interpolate(positions.transpose(1, 2).unflatten(2, small), size=large, mode="bilinear")
        torch.testing.assert_close(grown, torch_grown.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resize_positions(grown, large, small), positions, rtol=1e-4, atol=1e-5)


def test_grids_are_guessed_only_where_one_fits():
    assert guess_grid(16, (4, 4), 2) == (4, 4) and guess_grid(36, (4, 4), 2) == (6, 6)
    assert guess_grid(8, (2, 4), 2) == (2, 4)  # the model's own, where the number is the same
    assert guess_grid(48, (2, 4, 4), 3) == (3, 4, 4) and guess_grid(50, (2, 4, 4), 3) == (2, 5, 5)
    with pytest.raises(
        ValueError, match=r"15 positions are no square of tokens: say which grid they are of, grid=\(h, w\)"
    ):
        guess_grid(15, (4, 4), 2)
    with pytest.raises(
        ValueError, match=r"fit \(2, 8, 8\) and \(8, 4, 4\): say which grid they are of, grid=\(t, h, w\)"
    ):
        guess_grid(128, (2, 4, 4), 3)


# -- other sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LookupViT, ViT])
@pytest.mark.parametrize("size", [48, 64, (48, 64), (32, 40)], ids=str)
def test_trained_at_32_runs_at_others_and_comes_back_unchanged(cls, size, tmp_path):
    model = tiny(cls)
    save_weights(model, tmp_path / "32.safetensors")
    larger = tiny(cls, seed=1, img_size=size)
    report = quiet(larger, tmp_path / "32.safetensors")
    assert list(report.resized) == ["embed.pos_embed"] and not report.initialised and not report.unexpected
    if cls is LookupViT:  # the model does the same by itself at this size
        torch.testing.assert_close(larger(images(*larger.img_size)), model(images(*larger.img_size)), rtol=0, atol=1e-5)
    save_weights(larger, tmp_path / "larger.safetensors")
    back = tiny(cls, seed=2)
    quiet(back, tmp_path / "larger.safetensors")
    torch.testing.assert_close(back(images(32, 32)), model(images(32, 32)), rtol=0, atol=1e-5)


def test_it_trains_on_at_another_size(tmp_path):
    save_weights(tiny(), tmp_path / "32.safetensors")
    larger = tiny(img_size=(48, 64), seed=1)
    quiet(larger, tmp_path / "32.safetensors")
    larger.train()(images(48, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in larger.parameters())


def test_another_patch_size_and_number_of_classes():
    model, other = tiny(), tiny(seed=1, img_size=64, patch_size=16, num_classes=3)
    first = {name: p.clone() for name, p in other.named_parameters()}
    report = quiet(other, model.state_dict())
    assert report.resized == {"embed.proj.weight": "patch 8x8 to 16x16"}
    heads = {f"heads.{kind}.fc.{part}" for kind in ("compressed", "lookup") for part in ("weight", "bias")}
    assert set(report.initialised) == heads
    assert set(report.initialised.values()) == {"5 classes in the weights, 3 here"}
    assert all(torch.equal(first[name], p) == (name in heads) for name, p in other.named_parameters())
    # each patch of the larger image is the smaller one's, grown by itself
    x = images(32, 32)
    cells = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # (B h w, 3, 8, 8)
    grown = F.interpolate(cells, size=16, mode="bilinear").view(2, 4, 4, 3, 16, 16).permute(0, 3, 1, 4, 2, 5)
    ours, theirs = other.forward_features(grown.reshape(2, 3, 64, 64)), model.forward_features(x)
    torch.testing.assert_close(ours.compressed, theirs.compressed, rtol=1e-4, atol=1e-4)


def test_no_classifier_here_or_there():
    assert set(quiet(tiny(num_classes=0), tiny().state_dict()).unexpected.values()) == {"this model has no classifier"}
    report = quiet(tiny(), tiny(num_classes=0).state_dict())
    assert set(report.initialised.values()) == {"the weights have no classifier"}


def test_an_encoder_of_compressed_tokens_takes_a_model_with_both_heads():
    model, encoder = tiny(), tiny(seed=1, head="compressed")
    report = quiet(encoder, model.state_dict())
    assert set(report.unexpected.values()) == {"this model reads the compressed tokens alone"}
    torch.testing.assert_close(encoder.encode(images(32, 32)), model.encode(images(32, 32)))


def test_images_into_videos_and_videos_of_other_lengths(tmp_path):
    small = {key: TINY[key] for key in ("patch_size", "num_classes", "embed_dim", "depth", "num_heads")}
    joint = {"num_frames": 4, "img_size": 16, "compressed_size": (1, 2, 2), **small}
    model = tiny()
    video = LookupViViT(**joint).eval()
    report = quiet(video, model.state_dict(), inflation="average")
    assert report.resized == {"embed.proj.weight": "patch 8x8 to 2x8x8", "embed.pos_embed": "grid 4x4 to 2x2x2"}
    still = images(16, 16).unsqueeze(2).repeat(1, 1, 4, 1, 1)
    tokens, _ = video.embed_images(still)
    expected = tiny(img_size=16)
    quiet(expected, model.state_dict())
    torch.testing.assert_close(tokens[:, :4], expected.embed_images(images(16, 16))[0], rtol=1e-4, atol=1e-5)
    longer = LookupViViT(**{**joint, "num_frames": 6, "img_size": 32})
    save_weights(video, tmp_path / "video.safetensors")
    assert quiet(longer, tmp_path / "video.safetensors").resized == {"embed.pos_embed": "grid 2x2x2 to 3x4x4"}
    factorised = LookupViViT("factorised", **{**joint, "compressed_size": (2, 2), "temporal_depth": 1})
    report = quiet(factorised, model.state_dict())
    assert {n for n, why in report.initialised.items() if "no time" in why} == {
        n for n, _ in factorised.named_parameters() if n.startswith("temporal.")
    }
    with pytest.raises(ValueError, match="is a video model's, this model takes images"):
        quiet(tiny(), video.state_dict())


# -- files -----------------------------------------------------------------------------------------------------------


def test_prefixes_of_every_wrapper_come_off(tmp_path):
    model = tiny()
    state = model.state_dict()
    averaged = AveragedModel(model)
    for name, wrapped in {
        "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        "ddp": {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        "task": {"pytorch-lightning_version": "2.6", "state_dict": {f"model.{k}": v for k, v in state.items()}},
        "average": averaged.state_dict(),
        "timm": {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state, "epoch": 3},
        "mixed": {**{k: v + 1 for k, v in state.items()}, **{f"ema_model.module.{k}": v for k, v in state.items()}},
        "lightning_average": {
            "pytorch-lightning_version": "2.6",
            "state_dict": {f"model.{k}": v for k, v in state.items()},
            "current_model_state": {f"model.{k}": v + 1 for k, v in state.items()},
        },
        "with_metrics": {
            "pytorch-lightning_version": "2.6",
            "state_dict": {"metric.total": torch.ones(1), **{f"model.{k}": v for k, v in state.items()}},
        },
    }.items():
        torch.save(wrapped, tmp_path / f"{name}.ckpt")
        other = tiny(seed=1)
        report = quiet(other, tmp_path / f"{name}.ckpt")
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items()), name
        assert len(report.loaded) == len(state)
        if name in ("timm", "mixed", "lightning_average"):
            assert set(report.unexpected.values()) == {"the averaged weights were taken"}
            quiet(other, tmp_path / f"{name}.ckpt", ema=False)
            assert torch.equal(other.embed.pos_embed, model.embed.pos_embed + 1), name


def test_a_checkpoint_says_its_grid_and_heads(tmp_path):
    wide = tiny(img_size=(16, 64))  # 16 tokens, like the square model's
    save_weights(wide, tmp_path / "wide.ckpt")
    save_weights(wide, tmp_path / "wide.safetensors")
    for file in ("wide.ckpt", "wide.safetensors"):
        weights = read_weights(tmp_path / file)
        assert (weights.grid, weights.num_heads) == ((2, 8), 3), file
        assert quiet(tiny(), tmp_path / file).resized == {"embed.pos_embed": "grid 2x8 to 4x4"}
        with pytest.raises(ValueError, match=r"have 3 attention heads, this model 2: .* num_heads=3"):
            quiet(tiny(num_heads=2), tmp_path / file)


class Evil:
    """What a hostile file holds: something that runs when it is unpickled."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_code_in_a_file_is_named_and_never_run(tmp_path):
    flag = tmp_path / "ran"
    torch.save({"state_dict": Evil(flag)}, tmp_path / "zip.pt")
    torch.save({"state_dict": Evil(flag)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.safetensors").write_bytes(pickle.dumps(Evil(flag)))  # whatever its ending says
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "module.pt")
    for file in ("zip.pt", "old.pt", "bare.safetensors", "module.pt"):
        with pytest.raises(ValueError, match=r"holds code \(|cannot be read") as error:
            quiet(tiny(), tmp_path / file)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"holds code \(\w+\.system\), which was not run"):
        read_weights(tmp_path / "zip.pt")
    assert not flag.exists()


def test_damaged_files_are_one_line(tmp_path):
    save_weights(tiny(), tmp_path / "good.safetensors")
    torch.save(tiny().state_dict(), tmp_path / "good.pt")
    for name in ("good.safetensors", "good.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("some text")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("cut_good.safetensors", "are damaged"),
        ("cut_good.pt", "cannot be read"),
        ("empty.pt", "cannot be read"),
        ("text.pt", "cannot be read"),
        ("list.pt", "holds a list"),
        ("none.pt", "hold no tensors"),
        ("folder", "a folder of weights holds model.safetensors"),
        ("nowhere.pt", "do not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


# -- what is unexplained ---------------------------------------------------------------------------------------------


def test_anything_unexplained_is_an_error_and_changes_nothing(capsys):
    model = tiny()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    good = tiny(seed=1).state_dict()
    without = {name: value for name, value in good.items() if name != "blocks.1.mlp.fc1.bias"}
    for state, message in (
        (without, "blocks.1.mlp.fc1.bias is missing in them"),
        ({**good, "extra": torch.ones(1)}, "extra is not in the model"),
        (
            {**good, "norms.lookup.weight": torch.ones(7)},
            r"norms.lookup.weight has shape \(7,\) in them",
        ),
        (tiny(depth=3).state_dict(), "have 3 blocks, this model 2: build it with depth=3"),
        ({**good, "blocks.0.a": torch.ones(1), "blocks.1.a": torch.ones(1)}, r"blocks.0.a is not .* \(and 1 more, see"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(model, state)
        assert ("ERROR" in capsys.readouterr().out) == ("depth" not in message)
        assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    report = quiet(model, {**without, "extra": torch.ones(1)}, ignore=["extra", "*.fc1.bias"])
    assert set(report.initialised.values()) == {"ignored as asked"} == set(report.unexpected.values())


def test_the_table_groups_blocks_and_lists_each_kind():
    report = quiet(tiny(img_size=48, num_classes=3, head="compressed"), tiny().state_dict())
    text = io.StringIO()
    report.show(Console(file=text, width=200))
    table = text.getvalue()
    for part in ("loaded", "grid 4x4 to 6x6", "5 classes in the weights, 3 here", "reads the compressed tokens alone"):
        assert part in table, part
    assert len(table.splitlines()) < 30


def test_a_timm_vit_into_the_vit_beside_it():
    """Class tokens and their positions go, LayerScale is folded in; with the same pooling the function is the same."""
    options = {**TINY, "class_token": False, "global_pool": "avg", "fc_norm": False, "init_values": 0.5}
    theirs = timm.create_model("vit_tiny_patch16_224", **options).eval()
    ours = tiny(ViT)
    report = quiet(ours, theirs.state_dict())
    assert report.notes == ["LayerScale: folded into attn.proj and mlp.fc2"]
    torch.testing.assert_close(ours(images(32, 32)), theirs(images(32, 32)), rtol=0, atol=1e-5)
    theirs = timm.create_model("vit_tiny_patch16_224", **TINY, reg_tokens=2)
    report = quiet(ours, theirs.state_dict())
    assert set(report.unexpected) == {"cls_token", "reg_token"}
    assert torch.equal(ours.vit.pos_embed, theirs.pos_embed[:, 3:])
    theirs = timm.create_model("vit_tiny_patch16_224", **TINY, no_embed_class=True)
    quiet(ours, theirs.state_dict())
    assert torch.equal(ours.vit.pos_embed, theirs.pos_embed)


def test_a_vit_is_not_loaded_into_a_lookupvit_by_mistake():
    with pytest.raises(ValueError, match="are a plain ViT's, this model is a LookupViT: use warm_start"):
        quiet(tiny(), tiny(ViT).state_dict())
    with pytest.raises(ValueError, match="are a LookupViT's, this model is a ViT: build a lookupvit_ one"):
        quiet(tiny(ViT), tiny().state_dict())


def test_save_weights_writes_what_it_is_asked_for(tmp_path):
    model = create_model("lookupvit_tiny_patch4_32", num_classes=3, depth=1, embed_dim=12)
    save_weights(model, tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["name"] == "lookupvit_tiny_patch4_32" and saved["args"]["depth"] == 1 and saved["num_classes"] == 3
    with pytest.raises(ValueError, match=r"the ending .\.bin. is unknown: choose \.safetensors or \.ckpt"):
        save_weights(model, tmp_path / "x.bin")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").grid is None


def test_positions_of_extra_tokens_are_told_by_the_square() -> None:
    for tokens, count, expected in ((1, 197, True), (1, 196, False), (0, 197, False), (2, 198, True), (1, 1, False)):
        assert _have_positions(tokens, count, None, None) is expected
    assert _have_positions(1, 197, (14, 14), None) and not _have_positions(1, 196, (14, 14), None)
