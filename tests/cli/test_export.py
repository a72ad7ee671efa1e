"""`lookupvit export` and `lookupvit knn`: programs run by other runtimes, neighbours by hand, one-line errors."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import v2

from lookupvit import LookupViT, ViT, export_model, load_model, save_weights
from lookupvit.analysis.knn import knn_accuracy, pooled_features
from lookupvit.cli.main import main
from lookupvit.interop.export import load_program
from lookupvit.interop.program import Preprocessing

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 1, "num_heads": 2}
DATA = {"class_path": "datamodules.ImageFolderDataModule"}


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return randomised(LookupViT(**TINY, compressed_size=(3, 3)))


@pytest.fixture(scope="module")
def checkpoint(model, image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `lookupvit fit` writes it: with its data and the names of the classes."""
    path = tmp_path_factory.mktemp("export") / "x.ckpt"
    save_weights(model, path)
    content = torch.load(path, weights_only=True)
    options = {"root": str(image_tree), "img_size": 32, "batch_size": 4, "num_workers": 0, "interpolation": "bilinear"}
    content["data_config"] = {**DATA, "init_args": options}
    content["class_names"] = ["a", "b", "c"]
    torch.save(content, path)
    return path


def run(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def check_program(path: Path, model: LookupViT, sizes: list[tuple[int, int]], cases: list[tuple[int, int]]) -> None:
    """Runs pixels through onnxruntime; the reference converts them with torchvision and runs the eager model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    prepare = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    for batch, index in cases:
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        choice = {"size": np.array(index)} if len(sizes) > 1 else {}
        found = session.run(["probabilities"], {"images": pixels, **choice})[0]
        with torch.no_grad():
            images = prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            expected = model(images, compressed_size=sizes[index]).softmax(1)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    content = path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content  # no paths of this machine
    assert len(content) < 2 * sum(4 * p.numel() for p in model.parameters()) + 50_000 * len(sizes)


def test_onnx_with_fused_preprocessing(model, checkpoint, tmp_path, capsys) -> None:
    out = run(capsys, "export", checkpoint, "--preprocessing", "--output", tmp_path / "x.onnx")
    assert "uint8 (B, 32, 32, 3) to probabilities (B, 3); it differs from the model by" in " ".join(out.split())
    check_program(tmp_path / "x.onnx", model, [(3, 3)], [(1, 0), (5, 0)])


@pytest.mark.slow
def test_onnx_of_two_sizes_in_one_file_and_in_two(model, checkpoint, tmp_path, capsys) -> None:
    sizes = ("--compressed_size", "2x2", "3x3", "--preprocessing", "--output", tmp_path / "x.onnx")
    out = run(capsys, "export", checkpoint, *sizes)
    assert "uint8 (B, 32, 32, 3) and size (0 to 1 for 2x2, 3x3) to probabilities (B, 3)" in " ".join(out.split())
    check_program(tmp_path / "x.onnx", model, [(2, 2), (3, 3)], [(1, 0), (5, 1)])
    run(capsys, "export", checkpoint, *sizes, "--separate")
    for name in ("2x2", "3x3"):
        check_program(tmp_path / f"x_{name}.onnx", model, [(int(name[0]), int(name[0]))], [(2, 0)])


def test_torch_export_of_one_head_at_another_image_size(model, checkpoint, tmp_path, capsys) -> None:
    argv = ("export", checkpoint, "--format", "torch-export", "--head", "compressed", "--img_size", "32x48")
    out = run(capsys, *argv, "--output", tmp_path / "x.pt2")
    assert "float32 (B, 3, 32, 48), normalised to logits" in out
    images = torch.randn(4, 3, 32, 48)
    with torch.no_grad():
        expected = model(images, head="compressed")
    torch.testing.assert_close(load_program(tmp_path / "x.pt2")(images), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx_of_a_plain_vit(tmp_path) -> None:
    vit = randomised(ViT(**TINY))
    assert export_model(vit, tmp_path / "vit.onnx") < 1e-5
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(load_program(tmp_path / "vit.onnx")(images), vit(images).detach(), rtol=0, atol=1e-5)


def test_a_folder_for_the_hub(model, checkpoint, tmp_path, capsys) -> None:
    out = run(capsys, "export", checkpoint, "--format", "folder", "--output", tmp_path / "hub")
    assert "README.md, config.json, model.safetensors, preprocessor_config.json" in out
    again = LookupViT.from_pretrained(tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(images), model(images))
    assert again.class_names == ["a", "b", "c"]
    processor = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406] and processor["resample"] == 2
    assert load_model(tmp_path / "hub").compressed_size == (3, 3)


def test_mistakes_are_one_line(model, checkpoint, tmp_path, capsys) -> None:
    save_weights(model, tmp_path / "bare.ckpt")
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    assert "give --mean and --std" in fail(capsys, "export", tmp_path / "bare.ckpt", "--preprocessing")
    assert "go together" in fail(capsys, "export", checkpoint, "--mean", 0, 0, 0)
    assert "does not say which model it holds" in fail(capsys, "export", tmp_path / "bare.safetensors")
    assert "ends in .onnx" in fail(capsys, "export", checkpoint, "--output", tmp_path / "x.pt2")
    assert "(9, 9)" in fail(capsys, "export", checkpoint, "--compressed_size", "9x9")
    assert "--probabilities goes with" in fail(capsys, "export", checkpoint, "--probabilities", "softmax")
    assert "needs --output" in fail(capsys, "export", checkpoint, "--format", "folder")
    assert "do not exist: check the path" in fail(capsys, "export", tmp_path / "nowhere.ckpt")
    assert "does not say which data" in fail(capsys, "knn", tmp_path / "bare.ckpt")
    assert "--k 99" in fail(capsys, "knn", checkpoint, "--k", 99)
    assert "--model.lr is no option of knn" in fail(capsys, "knn", checkpoint, "--model.lr", 1)
    with pytest.raises(ValueError, match="give one of each per channel"):
        Preprocessing((0.5,), (0.5, 0.5))
    with pytest.raises(ValueError, match="only image classifiers have fused preprocessing"):
        export_model(
            LookupViT(**{**TINY, "num_classes": 0}, compressed_size=2),
            tmp_path / "x.onnx",
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3),
        )


def test_votes_of_neighbours_by_hand() -> None:
    """Neighbours at cosines 1, 0.6 and 0.6: at a low temperature the nearest wins, at a high one the other two."""
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]]), torch.tensor([0, 1, 1, 2])
    query = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn_accuracy(bank, query, (1, 3), temperature=0.07) == {1: 1.0, 3: 1.0}
    assert knn_accuracy(bank, query, (1, 3), temperature=10.0) == {1: 1.0, 3: 0.0}
    with pytest.raises(ValueError, match="--k 5: give 1 to 4"):
        knn_accuracy(bank, query, (5,))


def test_knn_of_a_checkpoint_equals_a_loop(model, checkpoint, image_tree, capsys) -> None:
    out = run(capsys, "knn", checkpoint, "--k", 1, "--compressed_size", "2x2", "3x3", "--data.crop_pct", 1)

    def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        resize = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
        normal = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        files = sorted((image_tree / split).rglob("*.JPEG"))
        names = sorted({file.parent.name for file in files})
        images = [normal(resize(v2.functional.pil_to_tensor(Image.open(file)))) for file in files]
        return torch.stack(images), torch.tensor([names.index(file.parent.name) for file in files])

    (train, classes), (val, truth) = load("train"), load("val")
    with torch.no_grad():
        for size in ((2, 2), (3, 3)):
            a, b = (model.forward_features(x, size).compressed.mean(1) for x in (train, val))
            nearest = torch.nn.functional.cosine_similarity(b[:, None], a[None], dim=2).argmax(1)
            accuracy = (classes[nearest] == truth).float().mean()
            assert f"{100 * accuracy:.2f} %" in next(
                line for line in out.splitlines() if f"{size[0]}x{size[0]}" in line
            )
    vit = randomised(ViT(**TINY))
    features, targets = pooled_features(vit, [(val, truth)])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(val)))
    assert torch.equal(targets, truth)
