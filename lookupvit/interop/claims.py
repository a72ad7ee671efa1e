"""Whether a checkpoint can hold the model that it describes, asked before any memory is taken for that model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lookupvit import trust
from lookupvit.model.caption.captioner import Captioner
from lookupvit.model.zoo import create_model, model_arguments
from lookupvit.weights.claims import check_parameters

_OPTIONS = ("num_classes", "img_size", "num_frames")


def check_claims(hparams: Any, state: Any, source: str) -> None:
    """Compares the number of parameters of the described model with that of the tensors.

    Args:
        hparams: Hyper-parameters of a checkpoint; nothing is checked if they do not name a model.
        state: Tensors of the checkpoint by name.
        source: What to call the file in messages.

    Raises:
        ValueError: If they describe no model, or one that is much larger than the file; one line.
    """
    trust.check_plain(hparams, f"{source}: its hyper_parameters")
    if not isinstance(hparams, Mapping) or not isinstance(hparams.get("name"), str) or not isinstance(state, Mapping):
        return
    held = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    check_parameters(lambda: _described(hparams), held, source)


def _described(hparams: Mapping[str, Any]) -> nn.Module:
    known = model_arguments(hparams["name"])
    small = {"compressed_size": 1} if "compressed_size" in known else {}  # it has no parameters of its own
    if "decoder" in hparams:
        return Captioner(
            hparams["name"],
            hparams.get("vocab_size"),
            hparams.get("img_size"),
            memory=hparams.get("memory"),
            **small,
            encoder_args=hparams.get("args"),
            decoder_args=hparams.get("decoder"),
        )
    given = {key: hparams[key] for key in _OPTIONS if hparams.get(key) is not None and key in known}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return create_model(hparams["name"], **{**(hparams.get("args") or {}), **given, **small})
