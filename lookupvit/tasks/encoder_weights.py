"""The encoder of a captioner from the checkpoint of a classifier, or of another captioner."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit.checkpoints.contents import Contents, read_contents
from lookupvit.checkpoints.pixels import Pixels, fold_normalisation, pixels_of
from lookupvit.grid import grid_of, resize_tokens, size_name
from lookupvit.interop.claims import check_claims
from lookupvit.interop.load_model import build_model
from lookupvit.model.lookupvit import LookupViT
from lookupvit.tasks.optim import clean_name

_POSITIONS = ("embed.pos_embed", "vit.pos_embed")
# Present in a classifier, of no use to a decoder.
_HEADS = ("heads.", "norms.", "vit.head.", "vit.fc_norm.")


def load_encoder(encoder: nn.Module, path: str | Path, pixels: Pixels | None = None) -> str:
    """Puts a checkpoint's weights into an encoder.

    Positions are resized where the image sizes differ. What only a classifier has is left out: its heads, and the end
    of the last block where the decoder does not read it. Anything else has to be there, and nothing may be left over.

    Args:
        encoder: a `LookupViT` or `ViT`.
        path: a checkpoint that `lookupvit fit` wrote.
        pixels: how the images will be normalised that the encoder sees; where its own were normalised otherwise, the
            patch embedding makes up for it. None: they are the same.

    Returns:
        a line or two that say what was done.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or of another model; one line.
    """
    state, contents = _read(Path(path))
    hyper = contents.hyper_parameters
    _same_function(encoder, hyper, path)
    own = encoder.state_dict()
    notes = []
    for name in set(_POSITIONS) & set(own) & set(state):
        if state[name].shape != own[name].shape:
            state[name], note = _resized(encoder, state[name], hyper, path)
            notes.append(note)
    missing = [name for name in own if name not in state]
    last = f"blocks.{encoder.depth - 1}." if isinstance(encoder, LookupViT) else None
    over = [name for name in state if name not in own]
    strange = [name for name in over if not name.startswith(_HEADS) and not (last and name.startswith(last))]
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or strange or wrong:
        name = (missing + strange + wrong)[0]
        what = "is not in it" if missing else "is not in the encoder" if strange else "has another shape"
        raise ValueError(
            f"encoder_ckpt {path} does not fit the encoder: {name} {what}; give the checkpoint's own name and args"
        )
    encoder.load_state_dict({name: state[name] for name in own})
    left = [f"{len(over)} of the classifier left out"] if over else []
    line = f"encoder: {len(own)} tensors of {path}{''.join(f', {note}' for note in [*left, *notes])}"
    folded = fold_into_encoder(encoder, pixels, pixels_of(contents), path)
    return line if folded is None else f"{line}\n{folded}"


def _read(path: Path) -> tuple[dict[str, Tensor], Contents]:
    """The encoder's tensors by its own names, and what the file says of the model that it was part of."""
    if not path.is_file():
        raise FileNotFoundError(f"encoder_ckpt {path} does not exist: give a checkpoint that lookupvit fit wrote")
    try:
        contents = read_contents(path)
        named = {clean_name(name): value for name, value in contents.content["state_dict"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"encoder_ckpt {path} cannot be read: it is damaged, or not one of lookupvit fit") from error
    prefix = "model.encoder." if any(name.startswith("model.encoder.") for name in named) else "model."
    state = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    check_claims(contents.hyper_parameters, named, f"encoder_ckpt {path}")
    return state, contents


def fold_into_encoder(encoder: nn.Module, data: Pixels | None, own: Pixels | None, source: str | Path) -> str | None:
    """Lets an encoder see the data's images as its own were normalised; see `fold_normalisation`.

    Args:
        encoder: with the weights of `source`.
        data: how the data normalise.
        own: how the images were normalised that the weights come from.
        source: of the weights, for the line.

    Returns:
        one line that says what was done; None where both are the same or the data do not say.
    """
    if data is None or (own is not None and own.same_values(data)):
        return None
    if own is None:
        return f"Warning: encoder_ckpt {source} does not say how its images were normalised: it gets them with {data}"
    fold_normalisation(encoder, data, own)
    return f"encoder: trained with {own}, the data have {data}: its patch embedding now takes the data's"


def _twin(hyper: dict[str, Any]) -> nn.Module | None:
    """The checkpoint's own model, without memory for its weights; None where it does not say what it is."""
    if "name" not in hyper:
        return None
    with torch.device("meta"):
        return build_model(Contents("the checkpoint", hyper_parameters=hyper), num_classes=0)


def _function(model: nn.Module) -> dict[str, Any]:
    """What decides a model's function and does not show in the shapes of all of its weights."""
    if isinstance(model, LookupViT):
        cross = model.blocks[0].cross
        return {name: getattr(cross, name) for name in ("num_heads", "reuse", "cross_norm")} | {
            "antialias": model.antialias
        }
    return {"num_heads": model.vit.blocks[0].attn.num_heads}


def _same_function(encoder: nn.Module, hyper: dict[str, Any], path: str | Path) -> None:
    twin = _twin(hyper)
    if twin is None:
        return
    if type(twin) is not type(encoder):
        kinds = type(twin).__name__, type(encoder).__name__
        raise ValueError(
            f"encoder_ckpt {path} is a {kinds[0]}, the encoder a {kinds[1]}: give a model of the same kind"
        )
    here = _function(encoder)
    for name, value in _function(twin).items():
        if here[name] != value:
            raise ValueError(
                f"encoder_ckpt {path} was trained with {name}={value!r}, the encoder has {here[name]!r}: "
                f"set --model.args.{name} {value}"
            )


def _resized(encoder: nn.Module, positions: Tensor, hyper: dict[str, Any], path: str | Path) -> tuple[Tensor, str]:
    """Positions `(1, n, D)` of the checkpoint's image size at the encoder's."""
    twin = _twin(hyper)
    if twin is None:
        raise ValueError(f"encoder_ckpt {path} does not say its image size: set --data.img_size to the one it has")
    old, new = (grid_of(model.img_size, model.patch_size) for model in (twin, encoder))
    note = f"positions resized from {size_name(old)} to {size_name(new)}"
    return resize_tokens(positions, old, new), note
