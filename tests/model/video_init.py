"""Video models that start where an image model ended: kernels inflated, positions tiled over time.

Letters: D embed_dim, (h, w) an image's token grid, (t, h, w) a clip's.
"""

from math import isqrt

from torch import Tensor, nn

from lookupvit.weights.resize import fit_positions, inflate_patch_embed

# A plain ViT's names (timm's, with or without the prefix of `lookupvit.ViT`) and those of `ViViT`.
_VIT_NAMES = {"patch_embed.": "embed.", "pos_embed": "embed.pos_embed", "head.": "heads.pooled.fc."}
# What an image model cannot teach: the temporal transformer, and classifiers of other classes.
_FRESH = ("temporal.", "heads.")


def load_image_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    method: str = "central_frame",
    image_grid: tuple[int, int] | None = None,
) -> list[str]:
    """Copies an image model's weights into a video model of the same width, depth and patch size.

    Args:
        model: a `LookupViViT`, for weights of a `LookupViT`; a `ViViT`, for weights of a `ViT` or of timm's.
        state: the image model's state dict.
        method: how a patch kernel becomes a tubelet's, see `inflate_patch_embed`.
        image_grid: token grid (h, w) of the image model; a square by default.

    Returns:
        names of the parameters that keep their random values: the temporal transformer's and the classifiers'.

    Raises:
        ValueError: if something else is missing or of another shape, or the image model is deeper, in one line.
    """
    state = {_renamed(name): value for name, value in state.items()}
    kernel, positions = state.get("embed.proj.weight"), state.get("embed.pos_embed")
    if kernel is None or positions is None:
        raise ValueError("these are no weights of an image model: embed.proj.weight or embed.pos_embed is missing")
    image_grid, positions = _square(positions) if image_grid is None else (image_grid, positions)
    state["embed.proj.weight"] = inflate_patch_embed(kernel, model.tubelet_size, method)
    state["embed.pos_embed"] = fit_positions(positions, image_grid, model.embed.grid_size)

    own = model.state_dict()
    fresh = [name for name in own if name.startswith(_FRESH)]
    taken = {name: state[name] for name in own if name in state and name not in fresh}
    missing = [name for name in own if name not in taken and name not in fresh]
    deeper = [name for name in state if name.startswith("blocks.") and int(name.split(".")[1]) >= model.depth]
    if missing or deeper:
        what = f"have no {missing[0]}" if missing else f"go on with {deeper[0]}"
        raise ValueError(
            f"the image weights {what} (and {len(missing or deeper) - 1} more such): take weights of the same kind of "
            f"model, for a {type(model).__name__} of depth {model.depth}"
        )
    for name, value in taken.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"the image weights' {name} has shape {tuple(value.shape)}, this model's {tuple(own[name].shape)}: "
                "take weights of the same width and patch size"
            )
    model.load_state_dict(taken, strict=False)
    return fresh


def _renamed(name: str) -> str:
    """A parameter's name in the video model."""
    name = name.removeprefix("vit.")
    for old, new in _VIT_NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _square(positions: Tensor) -> tuple[tuple[int, int], Tensor]:
    """The square grid of positions `(1, N, D)`, and they without a class token's where it stands first."""
    for tokens in (positions, positions[:, 1:]):
        side = isqrt(tokens.shape[1])
        if side and side * side == tokens.shape[1]:
            return (side, side), tokens
    raise ValueError(
        f"{positions.shape[1]} positions are no square of tokens, with or without a class token: give image_grid=(h, w)"
    )
