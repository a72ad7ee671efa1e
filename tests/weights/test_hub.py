"""Models as folders: what `save_pretrained` writes, what `from_pretrained` makes of it, and what it refuses."""

import json

import pytest
import torch

from lookupvit import LookupViT, ViT
from lookupvit.weights.hub import image_processor

TINY = {"img_size": (32, 48), "patch_size": 8, "num_classes": 3, "embed_dim": 12, "depth": 1, "num_heads": 3}
X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cls", [LookupViT, ViT])
def test_a_folder_gives_the_same_model(cls, tmp_path):
    model = cls(**TINY, **({"compressed_size": (2, 3), "reuse": "renormalize"} if cls is LookupViT else {})).eval()
    model.set_preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), class_names=["a", "b", "c"])
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    again = cls.from_pretrained(tmp_path)
    torch.testing.assert_close(again(X), model(X))
    assert again.class_names == ["a", "b", "c"] and again.preprocessing == model.preprocessing
    card = (tmp_path / "README.md").read_text()
    assert f"{cls.__name__}.from_pretrained" in card and "library_name: lookupvit" in card and "32x48" in card
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [cls.__name__] and config["id2label"]["1"] == "b"


def test_arguments_replace_those_of_the_folder(tmp_path):
    LookupViT(**TINY, compressed_size=(2, 2)).save_pretrained(tmp_path)
    other = LookupViT.from_pretrained(tmp_path, compressed_size=(1, 1), img_size=64, num_classes=5)
    assert other.compressed_size == (1, 1) and other(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_another_class_or_a_damaged_folder_is_one_line(tmp_path):
    ViT(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a ViT, not a LookupViT: use ViT\.from_pretrained"):
        LookupViT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        ViT(**TINY).set_preprocessing((0.5,) * 3, (0.5,) * 3, class_names=["a", "b"])
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04 no weights")
    with pytest.raises(ValueError, match="cannot be read") as error:
        ViT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_image_processor_of_squares_and_rectangles():
    square = image_processor((224, 224), (0.5,) * 3, (0.5,) * 3, crop_pct=0.875)
    assert square["size"] == {"shortest_edge": 256} and square["crop_size"] == {"height": 224, "width": 224}
    assert square["do_center_crop"] and square["resample"] == 3  # PIL's bicubic
    oblong = image_processor((32, 48), (0.5,) * 3, (0.5,) * 3)
    assert oblong["size"] == {"height": 32, "width": 48} and not oblong["do_center_crop"]
    with pytest.raises(ValueError, match="interpolation='cubic' is not known"):
        image_processor((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="cubic")
