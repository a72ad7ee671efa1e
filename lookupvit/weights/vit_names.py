"""Translates state dicts of timm's plain ViTs: other names, and parts that the models here do not have.

Letters: D embed_dim.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod

from torch import Tensor

# timm's names (also with the prefix of `lookupvit.ViT`) and those of every other model here.
_NAMES = {"patch_embed.": "embed.", "pos_embed": "embed.pos_embed", "head.": "heads.pooled.fc."}
_GAMMA, _BLOCK = ".gamma", re.compile(r"\bblocks\.\d+\b")
# Names of LayerScale in a block and of the layer that it scales.
_SCALED = {
    "ls1": "attn.proj",
    "ls2": "mlp.fc2",
    "ls_gather": "cross.proj",
    "ls_infuse": "cross.proj_infuse",
    "ls_lookup_mlp": "lookup_mlp.fc2",
}
_TOKENS = ("cls_token", "reg_token", "dist_token")
# Parts that change the function of a ViT and that no model here has.
_FOREIGN = {
    "norm_pre.": "a norm after its embedding (CLIP)",
    "q_norm.": "norms on queries",
    "fc1_g.": "a gated MLP",
    "mlp.norm.": "a norm within its MLP",
    "attn.norm.": "a norm within its attention",
}


def common_name(name: str) -> str:
    """One name for the same parameter of timm's ViT, `ViT` and `ViViT`."""
    name = name.removeprefix("vit.")
    for old, new in _NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def is_plain_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of a ViT of timm's, or of `ViT`."""
    names = {name.removeprefix("vit.") for name in state}
    return "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names


def plain_vit(
    state: Mapping[str, Tensor], grid: tuple[int, ...] | None = None, own_grid: tuple[int, ...] | None = None
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The state dict of a timm ViT without the parts that the models here do not have.

    Class, register and distillation tokens are left out with their positions.

    Args:
        state: A ViT's state dict, names with or without `vit.`.
        grid: Token grid (h, w) of its positions, if it is known.
        own_grid: Token grid of the model to load into, tried first if `grid` is not known.

    Returns:
        The remaining tensors under timm's names; the names that were left out, with the reason; notes.

    Raises:
        ValueError: For a ViT that computes something else, in one line.
    """
    state = {name.removeprefix("vit."): value for name, value in state.items()}
    for part, what in _FOREIGN.items():
        if any(part in name for name in state):
            raise ValueError(
                f"this ViT has {what}, which no model here has: take one without, such as augreg's or deit's"
            )
    if "pos_embed" not in state:
        raise ValueError(
            "this ViT has no learned positions (pos_embed): take one with them, such as augreg's or deit's"
        )
    dropped, notes = {}, []
    tokens = 0
    for name in _TOKENS:
        if name in state:
            tokens += state.pop(name).shape[1]
            dropped[name] = "these models average their tokens instead"
    positions = state["pos_embed"]
    if _have_positions(tokens, positions.shape[1], grid, own_grid):  # the extra tokens' positions come first
        state["pos_embed"] = positions[:, tokens:]
    for name in [name for name in state if name.startswith(("head_dist.", "attn_pool."))]:
        del state[name]
        dropped[name] = "another way to pool"
    for name in [name for name in state if name.startswith("fc_norm.")]:
        state[name.removeprefix("fc_")] = state.pop(name)
        notes = ["fc_norm: after the average in the weights, before it here"]
    return state, dropped, notes


def unscaled(state: Iterable[str], own: Iterable[str]) -> list[str]:
    """Names of LayerScale among a model's `own` names, of blocks that weights of the names `state` have without it."""
    blocks = {name[: found.end()] for name in state if (found := _BLOCK.search(name))}
    has_none = not any(name.endswith(_GAMMA) for name in state)
    return [name for name in own if has_none and name.endswith(_GAMMA) and name.rsplit(".", 2)[0] in blocks]


def fold_layer_scale(state: dict[str, Tensor], own: Iterable[str] = ()) -> list[str]:
    """Multiplies each LayerScale in a state dict into the layer before it, in place; the function stays the same.

    Args:
        state: Weights of any model here, or of a timm ViT.
        own: Names of the model's tensors; nothing is folded if the model has LayerScale itself.

    Returns:
        A note that names the layers; empty if nothing was folded.
    """
    if any(name.endswith(_GAMMA) for name in own):
        return []
    folded: dict[str, None] = {}
    for name in [name for name in state if name.endswith(_GAMMA)]:
        block, which, _ = name.rsplit(".", 2)
        if which not in _SCALED:
            continue
        layer, gamma = f"{block}.{_SCALED[which]}", state.pop(name)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * gamma[:, None]  # (D, .) rows are outputs
        state[f"{layer}.bias"] = state[f"{layer}.bias"] * gamma
        folded[_SCALED[which]] = None
    *first, last = folded or [""]
    return [f"LayerScale: folded into {', '.join(first)}{' and ' if first else ''}{last}"] if folded else []


def _have_positions(tokens: int, count: int, grid: tuple[int, ...] | None, own_grid: tuple[int, ...] | None) -> bool:
    """Whether `tokens` extra tokens are among the `count` positions; timm has ViTs of both kinds."""
    for known in (grid, own_grid):
        if known is not None and prod(known) in (count, count - tokens):
            return count != prod(known)
    if grid is not None:
        raise ValueError(f"{count} positions, {tokens} of them perhaps of extra tokens, are not of a grid {grid}")
    return tokens > 0 and round(count**0.5) ** 2 != count
