"""The first weights of a captioner's encoder: those of a classifier, of another captioner, or of a timm ViT."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookupvit.checkpoints.contents import Contents, read_contents
from lookupvit.checkpoints.pixels import Pixels, fold_normalisation, pixels_of, timm_pixels
from lookupvit.grid import resize_tokens, size_name
from lookupvit.interop.claims import check_claims
from lookupvit.interop.load_model import build_model
from lookupvit.interop.warm_start import initialise
from lookupvit.model.lookupvit import LookupViT
from lookupvit.tasks.base import check
from lookupvit.weights.file import Weights, facts, read_weights

_POSITIONS = ("embed.pos_embed", "vit.pos_embed")
# Present in a classifier, of no use to a decoder.
_HEADS = ("heads.", "norms.", "vit.head.", "vit.fc_norm.")


def start_encoder(encoder: nn.Module, source: str, pixels: Pixels | None = None, verbose: bool = True) -> list[str]:
    """Puts weights into an encoder: a `.ckpt` by `load_encoder`, anything else as a classifier's `init_from`.

    Args:
        encoder: A `LookupViT` or `ViT`.
        source: A checkpoint of `lookupvit fit`, another file or folder of weights, or the name of a timm ViT.
        pixels: How the data normalise the images; None: as the encoder's own images were.
        verbose: Print what became of each tensor, where the source is not a `.ckpt`.

    Returns:
        Lines that say what was done.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a timm model.
        ValueError: If the weights do not fit; one line.
    """
    if source.endswith(".ckpt"):
        return load_encoder(encoder, source, pixels).splitlines()
    initialise(encoder, source, verbose=verbose)
    is_file = Path(source).expanduser().exists()
    own = pixels_of(read_contents(source)) if is_file else timm_pixels(source)
    line = _fold_into_encoder(encoder, pixels, own, source)
    return [] if line is None else [line]


def load_encoder(encoder: nn.Module, path: str | Path, pixels: Pixels | None = None) -> str:
    """Puts a checkpoint's weights into an encoder.

    Positions are resized where the image sizes differ. What only a classifier has is left out: its heads, and the end
    of the last block where the decoder does not read it. Every other tensor has to be in both.

    Args:
        encoder: A `LookupViT` or `ViT`.
        path: A checkpoint that `lookupvit fit` wrote.
        pixels: How the images that the encoder will see are normalised. Where its own were normalised otherwise, the
            patch embedding makes up for it. None: both are the same.

    Returns:
        One or two lines that say what was done.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or of another model; one line.
    """
    weights = _read(Path(path))
    state, own = weights.state, encoder.state_dict()
    _check_same_function(encoder, weights.contents, path)
    notes = []
    for name in set(_POSITIONS) & set(own) & set(state):
        if state[name].shape != own[name].shape:
            check(
                weights.grid is not None,
                f"encoder_ckpt {path} does not say its image size: set --data.img_size to the one it has",
            )
            old, new = weights.grid, tuple(facts(encoder)["grid"])
            state[name] = resize_tokens(state[name], old, new)  # (1, h w, D) -> (1, h' w', D)
            notes.append(f"positions resized from {size_name(old)} to {size_name(new)}")
    missing = [name for name in own if name not in state]
    unused = [name for name in state if name not in own]
    # The end of the last block serves the lookup tokens' head alone.
    expected = (*_HEADS, f"blocks.{encoder.depth - 1}.") if isinstance(encoder, LookupViT) else _HEADS
    unknown = [name for name in unused if not name.startswith(expected)]
    misshapen = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or unknown or misshapen:
        name = (missing + unknown + misshapen)[0]
        what = "is not in it" if missing else "is not in the encoder" if unknown else "has another shape"
        raise ValueError(
            f"encoder_ckpt {path} does not fit the encoder: {name} {what}; give the checkpoint's own name and args"
        )
    encoder.load_state_dict({name: state[name] for name in own})
    left = [f"{len(unused)} of the classifier left out"] if unused else []
    line = f"encoder: {len(own)} tensors of {path}{''.join(f', {note}' for note in [*left, *notes])}"
    folded = _fold_into_encoder(encoder, pixels, pixels_of(weights.contents), path)
    return line if folded is None else f"{line}\n{folded}"


def _read(path: Path) -> Weights:
    """The weights of a checkpoint, a captioner's reduced to its encoder, by the encoder's own names."""
    if not path.is_file():
        raise FileNotFoundError(f"encoder_ckpt {path} does not exist: give a checkpoint that lookupvit fit wrote")
    try:
        weights = read_weights(path)
        saved = weights.contents.content["state_dict"]
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"encoder_ckpt {path} cannot be read: it is damaged, or not one of lookupvit fit") from error
    check_claims(weights.contents.hyper_parameters, saved, f"encoder_ckpt {path}")
    encoder = {name: value for name, value in weights.state.items() if name.startswith("encoder.")}
    if encoder:
        weights.state = {name.removeprefix("encoder."): value for name, value in encoder.items()}
    return weights


def _fold_into_encoder(encoder: nn.Module, data: Pixels | None, own: Pixels | None, source: str | Path) -> str | None:
    """Lets an encoder see the data's images as its own were normalised, see `fold_normalisation`.

    Returns one line that says what was done; None where both are the same or the data do not say.
    """
    if data is None or (own is not None and own.same_values(data)):
        return None
    if own is None:
        return f"Warning: encoder_ckpt {source} does not say how its images were normalised: it gets them with {data}"
    fold_normalisation(encoder, data, own)
    return f"encoder: trained with {own}, the data have {data}: its patch embedding now takes the data's"


def _function(model: nn.Module) -> dict[str, Any]:
    """The settings that change what a model computes, but not the shapes of all of its weights."""
    if not isinstance(model, LookupViT):
        return {"num_heads": model.vit.blocks[0].attn.num_heads}
    cross = model.blocks[0].cross
    settings = {name: getattr(cross, name) for name in ("num_heads", "reuse", "cross_norm")}
    return {**settings, "antialias": model.antialias}


def _check_same_function(encoder: nn.Module, contents: Contents, path: str | Path) -> None:
    """Compares an encoder with the checkpoint's own model, which is built without memory for its weights."""
    if contents.name is None:
        return
    with torch.device("meta"):
        trained = build_model(contents, num_classes=0)
    if type(trained) is not type(encoder):
        kinds = type(trained).__name__, type(encoder).__name__
        raise ValueError(
            f"encoder_ckpt {path} is a {kinds[0]}, the encoder a {kinds[1]}: give a model of the same kind"
        )
    here = _function(encoder)
    for name, value in _function(trained).items():
        if here[name] != value:
            raise ValueError(
                f"encoder_ckpt {path} was trained with {name}={value!r}, the encoder has {here[name]!r}: "
                f"set --model.args.{name} {value}"
            )
