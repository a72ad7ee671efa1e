"""The encoder of a captioner from any file of weights: its function is checked, what only others need is left out."""

import inspect

import pytest
import torch

from lookupvit import LookupViT, create_model, save_weights
from lookupvit.interop.encoder import load_encoder
from lookupvit.tasks import CaptioningTask
from lookupvit.weights.load import OPTIONS, load_weights

NAME = "lookupvit_tiny_patch4_32"
TINY = {"img_size": 32, "compressed_size": (2, 2), "embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}


def encoder(**options):
    return create_model(NAME, num_classes=0, head="compressed", **{**TINY, **options})


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("option", "value"), [("reuse", "renormalize"), ("cross_norm", "projection"), ("antialias", False)]
)
def test_another_function_is_refused(tmp_path, ending, option, value):
    save_weights(create_model(NAME, num_classes=3, **{**TINY, option: value}), tmp_path / f"w{ending}")
    with pytest.raises(ValueError, match=f"set --model.args.{option} {value}") as error:
        load_encoder(encoder(), tmp_path / f"w{ending}", verbose=False)
    assert "\n" not in str(error.value)
    load_encoder(encoder(**{option: value}), tmp_path / f"w{ending}", verbose=False)


def test_loading_weights_of_another_function_is_noted(tmp_path):
    save_weights(create_model(NAME, num_classes=3, reuse="renormalize", **TINY), tmp_path / "w.safetensors")
    (note,) = load_weights(encoder(), tmp_path / "w.safetensors", verbose=False).notes
    assert "reuse='renormalize', this model has 'transpose'" in note
    assert not load_weights(encoder(reuse="renormalize"), tmp_path / "w.safetensors", verbose=False).notes


def test_the_options_and_their_defaults_are_the_models():
    parameters = inspect.signature(LookupViT).parameters
    assert {name: parameters[name].default for name in OPTIONS} == OPTIONS


def test_a_captioner_gives_its_encoder(tmp_path):
    captioner = CaptioningTask(
        NAME,
        img_size=32,
        compressed_size=(2, 2),
        vocab_size=20,
        args={"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8},
        decoder={"depth": 1, "num_heads": 2, "context_length": 8},
    )
    content = {"state_dict": captioner.state_dict(), "hyper_parameters": dict(captioner.hparams)}
    torch.save(content, tmp_path / "c.ckpt")
    own = encoder()
    load_encoder(own, tmp_path / "c.ckpt", verbose=False)
    given = captioner.model.encoder.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in own.state_dict().items())
