"""Models that come along by name: a tiny stand-in wherever a checkpoint is accepted, and the real ones."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lookupvit
from lookupvit import LookupViT, list_pretrained, load_model
from lookupvit.checkpoints import packaged
from lookupvit.cli.common.loaded import checkpoint_of, load_task
from lookupvit.cli.main import main

NAME = "lookupvit_stand_in"
REAL = packaged.PRETRAINED
ARGS = {"img_size": 32, "patch_size": 8, "num_classes": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}


def randomised(model: LookupViT) -> LookupViT:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, LookupViT]:
    """A checkpoint of a model that was trained at two sizes and scored at each."""
    model = randomised(LookupViT(**ARGS, compressed_size=(2, 2)))
    model.set_preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 1.0, "bilinear", ["a cat", "a dog"])
    model.trained_sizes, model.scores = [(2, 2), (3, 3)], {"val/top1@2x2": 0.5, "val/top1@3x3": 0.75}
    lookupvit.save_weights(model, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt", model


@pytest.fixture
def stand_in(checkpoint: tuple[Path, LookupViT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LookupViT:
    """The same, written as a model that comes along is."""
    monkeypatch.setattr(packaged, "PRETRAINED", tmp_path / "pretrained")
    argv = ["export", str(checkpoint[0]), "--format", "folder", "--half"]
    argv += ["--note", "Trained on two pictures.", "--output", str(tmp_path / "pretrained" / NAME)]
    assert main(argv) == 0
    return checkpoint[1]


def test_half_as_many_bytes_and_a_card_with_figures(stand_in: LookupViT) -> None:
    folder = packaged.PRETRAINED / NAME
    state = load_file(folder / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    for name, value in stand_in.state_dict().items():
        torch.testing.assert_close(state[name], value.half(), rtol=0, atol=0)
    card = (folder / "README.md").read_text()
    assert "Trained on two pictures." in card
    assert "| 2x2 | val/top1@2x2 50.00 % |" in card and "| 3x3 | val/top1@3x3 75.00 % |" in card
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "a cat", "1": "a dog"}


def test_load_model_takes_the_name(stand_in: LookupViT) -> None:
    assert list_pretrained() == [NAME]
    model, images = load_model(NAME), torch.rand(2, 3, 32, 32)
    assert model.class_names == ["a cat", "a dog"] and model.trained_sizes == [(2, 2), (3, 3)]
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(model(images), stand_in.eval()(images), rtol=2e-2, atol=2e-2)  # float16 has 11 bits
    with pytest.raises(FileNotFoundError, match=f"the name of a model that comes along: {NAME}"):
        load_model("lookupvit_none")


def test_a_file_of_that_name_comes_first(
    stand_in: LookupViT, checkpoint: tuple[Path, LookupViT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint[1].class_names = ["n01", "n02"]
    lookupvit.save_weights(checkpoint[1], tmp_path / "other.ckpt")
    (tmp_path / "other.ckpt").rename(tmp_path / NAME)
    assert load_model(NAME).class_names == ["n01", "n02"]
    assert checkpoint_of(NAME) == Path(NAME)


def test_the_commands_take_the_name(stand_in: LookupViT, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "one.png")
    assert main(["cost", NAME]) == 0
    assert "val/top1@3x3 75.00 %" in " ".join(capsys.readouterr().out.split())
    argv = ["predict", "--ckpt_path", NAME, "--data.predict_path", str(tmp_path / "one.png")]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), "--trainer.accelerator", "cpu"]) == 0
    (lines,) = (tmp_path / "out").rglob("predictions.jsonl")
    assert json.loads(lines.read_text())["predictions"][0]["class"] in ("a cat", "a dog")
    assert main(["export", NAME, "--format", "torch-export", "--output", str(tmp_path / "one.pt2")]) == 0
    task, contents = load_task(checkpoint_of(NAME), "cpu")  # as sweep, attend and app load theirs
    assert contents.class_names == ["a cat", "a dog"] and task.model.compressed_size == (2, 2)
    assert main(["cost", "lookupvit_none"]) == 2
    assert f"the name of a model that comes along: {NAME}" in capsys.readouterr().err


def test_options_of_a_folder_are_refused_for_programs(
    checkpoint: tuple[Path, LookupViT], tmp_path: Path, capsys
) -> None:
    assert main(["export", str(checkpoint[0]), "--half", "--output", str(tmp_path / "x.onnx")]) == 2
    assert "--half goes with --format folder" in capsys.readouterr().err


@pytest.mark.skipif(
    not (REAL / "lookupvit_imagenette" / "model.safetensors").is_file(),
    reason="lookupvit/pretrained/lookupvit_imagenette is not there yet: its training has not ended",
)
def test_the_model_of_imagenette() -> None:
    folder = REAL / "lookupvit_imagenette"
    assert (folder / "model.safetensors").stat().st_size < packaged.LIMIT
    model = load_model("lookupvit_imagenette")
    assert model.num_classes == len(model.class_names) == 10 and "golf ball" in model.class_names
    assert model.img_size == (224, 224) and len(model.trained_sizes) > 1
    card = (folder / "README.md").read_text()
    for size in model.trained_sizes:
        score = model.scores[f"val/top1@{size[0]}x{size[1]}"]
        assert score > 0.6  # chance is 0.1
        assert f"{100 * score:.2f} %" in card
    assert model(torch.rand(1, 3, 224, 224)).isfinite().all()
