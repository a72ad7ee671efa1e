"""No silent wrong answers: sizes, pixels, classes and cascades are those of the training, or it is said."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from lookupvit import ViT, create_model, load_model, save_weights
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cost import count_macs
from lookupvit.checkpoints.contents import contents_of, read_contents
from lookupvit.checkpoints.fingerprint import fingerprint
from lookupvit.checkpoints.pixels import Pixels, fold_normalisation, pixels_of, timm_pixels
from lookupvit.cli.main import main
from lookupvit.interop.encoder import load_encoder
from lookupvit.tasks.teacher import Teacher

HALF, IMAGENET = Pixels((0.5,) * 3, (0.5,) * 3), Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
PIXELS = {"mean": [0.3, 0.5, 0.7], "std": [0.2, 0.6, 0.4], "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory, image_tree: Path) -> Path:
    """A checkpoint of `fit` at 2x2, with pixels that are nobody's default."""
    folder = tmp_path_factory.mktemp("answers")
    init = {"name": "lookupvit_tiny_patch16_224", "compressed_size": [2, 2], "args": TINY, "lr": 0.01}
    data = {"root": str(image_tree), "img_size": 32, "batch_size": 4, "num_workers": 0, **PIXELS}
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
        "model": {"class_path": "ClassificationTask", "init_args": init},
        "data": {"class_path": "ImageFolderDataModule", "init_args": data},
        "output_dir": str(folder),
        "name": "tiny",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "tiny.yaml")]) == 0
    return folder / "tiny" / "version_0" / "checkpoints" / "last.ckpt"


def run(capsys: pytest.CaptureFixture, *argv: object, code: int = 0) -> tuple[str, str]:
    """What a command prints, and what it says on stderr."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    out = capsys.readouterr()
    return out.out, out.err


def picture(path: Path) -> Path:
    Image.new("RGB", (40, 50), (200, 30, 90)).save(path)
    return path


def loss(out: str) -> float:
    return float(re.search(r"test/loss\W+([\d.]+)", out)[1])


def test_a_checkpoint_says_what_it_holds(last: Path) -> None:
    contents = read_contents(last)
    assert contents.name == "lookupvit_tiny_patch16_224" and contents.trained_sizes == [(2, 2)]
    assert contents.pixels == Pixels(**PIXELS) and contents.img_size == (32, 32)
    assert contents.class_names == ["tench", "goldfish", "great white shark"]
    assert set(contents.scores) >= {"val/loss", "val/top1", "val/top5"} and 0 <= contents.score((2, 2))[1] <= 1


def test_a_budget_chooses_among_trained_sizes(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = load_model(last)
    one, two = (count_macs(model, 32, (side, side)) / 1e9 for side in (1, 2))
    images = ["--data.predict_path", picture(tmp_path / "x.png"), "--output_dir", tmp_path]
    large = run(capsys, "predict", "--ckpt_path", last, "--budget_gmacs", 10 * two, *images)[1]
    assert "2x2 is the largest trained compressed size" in large and "val/top1" in large and f"{two:.4g}" in large
    small = ("predict", "--ckpt_path", last, "--budget_gmacs", (one + two) / 2, *images)
    assert "the smallest trained compressed size, 2x2, costs" in run(capsys, *small, code=2)[1]
    said = run(capsys, *small, "--untrained_sizes", "true")[1]
    assert "Warning: 1x1 is the largest" in said and "was not trained at that size (trained: 2x2)" in said
    cost = ("cost", "--ckpt_path", last, "--budget_gmacs")
    assert "2x2 is the largest" in (out := " ".join(run(capsys, *cost, 10 * two)[0].split())) and "val/top1" in out
    assert "the smallest trained compressed size, 2x2" in run(capsys, *cost, (one + two) / 2, code=2)[1]
    assert "was not trained" in run(capsys, *cost, (one + two) / 2, "--untrained_sizes")[0].replace("\n", " ")


def test_an_untrained_size_is_said(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for argv in (
        ("test", "--ckpt_path", last, "--model.compressed_size", "[3,3]"),
        ("knn", last, "--compressed_size", "3x3", "--k", 2),
        ("export", last, "--compressed_size", "3x3", "--format", "torch-export", "--output", tmp_path / "x.pt2"),
    ):
        assert "trained at 2x2, not at 3x3" in run(capsys, *argv)[1]
    assert "trained at" not in run(capsys, "test", "--ckpt_path", last)[1]


def test_pixels_travel_in_every_format(
    last: Path, tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture
) -> None:
    out, said = run(capsys, "test", "--ckpt_path", last)
    want, model = loss(out), load_model(last)
    assert "Warning" not in said
    save_weights(model, tmp_path / "x.ckpt")
    save_weights(model, tmp_path / "x.safetensors")
    run(capsys, "export", last, "--format", "folder", "--output", tmp_path / "folder")
    data = ("--data", "ImageFolderDataModule", "--data.root", image_tree, "--data.num_workers", 0)
    bank = run(capsys, "knn", last, "--k", 2)[0].split("2x2")[1]
    for name in ("x.ckpt", "x.safetensors", "folder"):
        out, said = run(capsys, "test", "--ckpt_path", tmp_path / name, *data)
        assert loss(out) == pytest.approx(want, abs=1e-5) and "Warning" not in said
        contents = read_contents(tmp_path / name)
        assert contents.pixels == Pixels(**PIXELS) and contents.trained_sizes == [(2, 2)]
        assert contents.scores == read_contents(last).scores
        assert fingerprint(contents.content.get("state_dict", contents.content)) == fingerprint(model.state_dict())
        assert run(capsys, "knn", tmp_path / name, "--k", 2, *data)[0].split("2x2")[1] == bank
    described = json.loads((tmp_path / "folder" / "config.json").read_text())
    del described["lookupvit"]  # as the code before wrote it
    (tmp_path / "folder" / "config.json").write_text(json.dumps(described))
    content = torch.load(last, weights_only=True)
    for key in ("preprocessing", "trained_sizes", "scores"):
        del content[key]
    torch.save(content, tmp_path / "old.ckpt")
    save_file(model.state_dict(), tmp_path / "folder" / "model.safetensors")
    assert loss(run(capsys, "test", "--ckpt_path", tmp_path / "folder", *data)[0]) == pytest.approx(want, abs=1e-5)
    assert pixels_of(read_contents(tmp_path / "old.ckpt")) == Pixels(**PIXELS)
    assert "normalised with" in run(capsys, "test", "--ckpt_path", last, "--data.mean", "[0.1,0.1,0.1]")[1]


@pytest.mark.slow
def test_programs_say_what_they_are(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(capsys, "export", last, "--output", tmp_path / "x.onnx")
    contents = read_contents(tmp_path / "x.onnx")
    assert contents.pixels == Pixels(**PIXELS) and contents.class_names[0] == "tench"
    assert contents.trained_sizes == [(2, 2)] and contents.name == "lookupvit_tiny_patch16_224"


def test_other_classes_are_said_or_refused(
    last: Path, tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture
) -> None:
    names = {"n01440764": "zebra", "n01443537": "otter", "n01484850": "crab"}
    for split in ("train", "val"):
        for folder, name in names.items():
            shutil.copytree(image_tree / split / folder, tmp_path / "tree" / split / name)
    right = loss(run(capsys, "test", "--ckpt_path", last)[0])
    other = ("--data.root", tmp_path / "tree")
    out, said = run(capsys, "test", "--ckpt_path", last, *other)
    assert "class 0 is 'tench' in the checkpoint and 'crab' in the data" in said
    assert abs(loss(out) - right) > 1e-3
    before = last.read_bytes()
    resumed = ("fit", "--ckpt_path", last, *other, "--trainer.max_epochs", 3, "--output_dir", tmp_path / "out")
    assert "trained on other classes: class 0 is 'tench'" in run(capsys, *resumed, code=2)[1]
    assert last.read_bytes() == before and not list((tmp_path / "out").rglob("*.ckpt"))
    readable = dict(zip(names.values(), ("tench", "goldfish", "great white shark"), strict=True))
    (tmp_path / "map.json").write_text(json.dumps(readable))
    out, said = run(capsys, "test", "--ckpt_path", last, *other, "--data.class_map", tmp_path / "map.json")
    assert loss(out) == pytest.approx(right, abs=1e-5) and "Warning" not in said
    (tmp_path / "map.json").write_text('{"lion": "tench"}')
    wrong = run(capsys, "test", "--ckpt_path", last, *other, "--data.class_map", tmp_path / "map.json", code=2)[1]
    assert "names the folder 'lion', which is not there" in wrong


def test_a_cascade_belongs_to_its_model(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = fingerprint(load_model(last).state_dict())
    given = {"sizes": ((1, 1), (2, 2)), "thresholds": (0.5,)}
    argv = ("predict", "--ckpt_path", last, "--data.predict_path", picture(tmp_path / "x.png"))
    argv += ("--output_dir", tmp_path, "--cascade", tmp_path / "c.json")
    Cascade(**given, model=own, img_size=(32, 32)).save(tmp_path / "c.json")
    assert Cascade.load(tmp_path / "c.json").model == own
    assert "cascade" not in run(capsys, *argv)[1]
    Cascade(**given, model="0" * 16, img_size=(32, 32)).save(tmp_path / "c.json")
    assert "is of another model" in run(capsys, *argv, code=2)[1]
    Cascade(**given, model=own, img_size=(64, 64)).save(tmp_path / "c.json")
    assert "is of images of 64x64 px, here 32x32" in run(capsys, *argv, code=2)[1]
    Cascade(**given).save(tmp_path / "c.json")
    assert "does not say which model" in run(capsys, *argv)[1]


def test_a_fingerprint_is_of_every_weight() -> None:
    torch.manual_seed(0)
    state = {"a": torch.randn(100, 7), "b": torch.randn(()), "c": torch.randn(3)}
    own = fingerprint(state)
    assert fingerprint({f"model.{name}": value for name, value in state.items()} | {"other": torch.ones(1)}) == own
    assert fingerprint(dict(reversed(state.items()))) == own and len(own) == 16
    for name in state:
        assert fingerprint({**state, name: state[name] * (1 + 1e-6)}) != own
    assert fingerprint({**state, "c": state["c"].view(1, 3)}) != own


def raw(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalised(pixels: Pixels, images: torch.Tensor) -> torch.Tensor:
    """By hand."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (pixels.mean, pixels.std))
    return (images - mean) / std


def test_a_teacher_sees_its_own_pixels(tmp_path: Path) -> None:
    torch.manual_seed(3)
    vit = ViT(img_size=32, num_classes=3, **TINY).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    vit.set_preprocessing(HALF.mean, HALF.std)
    save_weights(vit, tmp_path / "t.ckpt")
    want = vit(normalised(HALF, raw())).detach()
    teacher = Teacher(tmp_path / "t.ckpt", 3, (32, 32), IMAGENET)
    torch.testing.assert_close(teacher(normalised(IMAGENET, raw())).logits, want, rtol=1e-4, atol=1e-5)
    assert (Teacher(tmp_path / "t.ckpt", 3, (32, 32))(normalised(IMAGENET, raw())).logits - want).abs().max() > 1e-2


def test_timm_says_its_pixels() -> None:
    assert timm_pixels("vit_base_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    assert timm_pixels("deit_small_patch16_224.fb_in1k").same_values(IMAGENET)


def test_an_encoder_sees_its_own_pixels(last: Path) -> None:
    own = read_contents(last).pixels
    arguments = {"num_classes": 0, "img_size": 32, "compressed_size": (2, 2), "head": "compressed", **TINY}
    here, there = (create_model("lookupvit_tiny_patch16_224", **arguments).eval() for _ in range(2))
    load_encoder(here, last)
    line = load_encoder(there, last, IMAGENET)
    assert "its patch embedding now takes the data's" in line
    want, found = (
        model.forward_features(normalised(pixels, raw())).compressed
        for model, pixels in ((here, own), (there, IMAGENET))
    )
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert (here.forward_features(normalised(IMAGENET, raw())).compressed - want).abs().max() > 1e-2


def test_folding_is_exact_for_a_plain_vit() -> None:
    vit = ViT(img_size=32, num_classes=3, **TINY).eval()
    want = vit(normalised(HALF, raw())).detach()
    fold_normalisation(vit, IMAGENET, HALF)
    torch.testing.assert_close(vit(normalised(IMAGENET, raw())), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hyper_parameters": ["x"]}, "its hyper_parameters is not a mapping"),
        ({"hyper_parameters": {"name": 3}}, "its hyper_parameters.name is not text"),
        ({"hyper_parameters": {"name": "x", "args": "y"}}, "its hyper_parameters.args is not a mapping"),
        ({"class_names": [1, 2]}, "its class_names is not a list of text"),
        ({"task": 1}, "its task is not text"),
        ({"trained_sizes": [[3, -3]]}, "its trained_sizes is not a list of compressed sizes"),
        ({"trained_sizes": "3x3"}, "its trained_sizes is not a list of compressed sizes"),
        ({"scores": {"val/top1": "high"}}, "its scores.val/top1 is not a number"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "is not above 0"),
        ({"preprocessing": {"mean": [0, 0], "std": [1, 1, 1]}}, "its mean is not three numbers"),
        ({"preprocessing": {"mean": [0] * 3, "std": [1] * 3, "interpolation": "magic"}}, "interpolation 'magic'"),
        ({"preprocessing": {"mean": [0] * 3, "std": [1] * 3, "crop_pct": 2}}, "crop_pct '2' is not in"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        contents_of(content, "x.ckpt")
    assert "\n" not in str(error.value) and str(error.value).startswith("x.ckpt")


def test_old_transformers_processors_are_read() -> None:
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "do_center_crop": True}
    processor |= {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    assert Pixels.of_processor(processor) == Pixels((0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)
