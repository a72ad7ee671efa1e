"""The encoder of a captioner or a segmenter from a file of weights: of any model with such an encoder, or of a ViT."""

from pathlib import Path

from torch import nn

from lookupvit.checkpoints.pixels import Pixels, fold_normalisation, pixels_of, timm_pixels
from lookupvit.interop.warm_start import find_weights, initialise
from lookupvit.weights.load import other_options


def load_encoder(
    encoder: nn.Module, source: str | Path, pixels: Pixels | None = None, verbose: bool = True
) -> str | None:
    """Starts an encoder from other weights, as `initialise`, and lets it see the data's images as its own.

    Args:
        encoder: A `LookupViT` or `ViT`.
        source: What `initialise` takes, or the checkpoint of a captioner or a segmenter, whose encoder is taken.
        pixels: How the data normalise their images. Where the weights were trained with another normalisation, the
            patch embedding makes up for it, see `fold_normalisation`. None: they normalise alike.
        verbose: Print what became of each tensor.

    Returns:
        One line on the normalisation; None where nothing had to be done.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a timm model.
        ValueError: For weights that do not fit, or were trained with another function; one line.
    """
    weights = find_weights(source)
    weights.state, others = _of_encoder(weights.state)
    weights.dropped |= dict.fromkeys(others, "not of the encoder")
    for name, (theirs, here) in other_options(encoder, weights).items():
        raise ValueError(
            f"weights {source} were trained with {name}={theirs!r}, the encoder has {here!r}: "
            f"set --model.args.{name} {theirs}"
        )
    initialise(encoder, weights, verbose)
    own = timm_pixels(str(source)) if weights.contents is None else pixels_of(weights.contents)
    if pixels is None or (own is not None and own.same_values(pixels)):
        return None
    if own is None:
        return f"Warning: {source} does not say how its images were normalised: the encoder gets them with {pixels}"
    fold_normalisation(encoder, pixels, own)
    return f"encoder: trained with {own}, the data have {pixels}: its patch embedding now takes the data's"


def _of_encoder(state: dict) -> tuple[dict, list[str]]:
    """The tensors of the encoder within another model, and the names of all others; of a classifier all tensors."""
    ends = ("vit.patch_embed.proj.weight", "patch_embed.proj.weight", "embed.proj.weight")
    prefix = next((name.removesuffix(end) for end in ends for name in state if name.endswith(end)), "")
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inner, [name for name in state if not name.startswith(prefix)]
