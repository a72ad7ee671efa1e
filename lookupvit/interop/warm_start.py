"""Starts a LookupViT from the weights of a plain ViT. Not in the paper: a way to try it without training from scratch.

Each LookupViT block takes its weights from the ViT block of the same number:

    compressed self-attention, MLP    the ViT's, exactly
    gather (cross-attention)          the ViT's norm, Q, K, V and output projection
    infuse (the way back)             V' is the ViT's V; the output projection is zero
    lookup MLP                        the hidden units of the ViT's MLP that weigh most

The tokens of a ViT attend to each other. The lookup tokens of a LookupViT do not, so after the first block the
cross-attention reads something else than its weights were trained on. The outputs of the new branches are therefore
multiplied by a gain, see `Gains`. With the default of zero, the compressed tokens at first go through the ViT itself,
only with resized tokens, and the new branches grow during training. With as many compressed tokens as patches the
function at the start is exactly that of the ViT.

Letters: D embed_dim, F hidden width of the ViT's MLP, f of the lookup MLP.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from lookupvit.model.block import LookupViTBlock
from lookupvit.model.lookupvit import LookupViT
from lookupvit.weights.file import Weights, as_weights, facts
from lookupvit.weights.load import Report, fit_weights, load_weights
from lookupvit.weights.vit_names import fold_layer_scale, is_plain_vit, plain_vit

_PARTS = ("weight", "bias")
_OWN_NORMS = ("blocks.*.cross.norm_q.*", "blocks.*.cross.norm_k.*", "blocks.*.cross.norm_infuse.*")


class Gains(NamedTuple):
    """Factors on the output projections of the branches that a ViT does not have; with 0 the start is the ViT itself.

    Attributes:
        gather: Factor for the cross-attention from lookup to compressed tokens.
        infuse: Factor for the way back.
        lookup_mlp: Factor for the lookup MLP.
    """

    gather: float = 0.0
    infuse: float = 0.0
    lookup_mlp: float = 0.0


def initialise(model: nn.Module, source: str | Path | Weights, verbose: bool = True) -> Report:
    """Starts a model of the zoo from other weights: `load_weights`, or `warm_start` for a LookupViT from a plain ViT.

    Args:
        model: Any model of the zoo.
        source: A file or folder of weights, or the name of a timm ViT such as "vit_base_patch16_224.augreg_in21k",
            whose pretrained weights timm fetches; or weights that were read already.
        verbose: Whether to print what became of each tensor.

    Returns:
        What became of each tensor.

    Raises:
        FileNotFoundError: If there is neither such a file nor such a timm model.
        ValueError: For weights that do not fit, in one line.
    """
    weights = source if isinstance(source, Weights) else find_weights(source)
    start = warm_start if isinstance(model, LookupViT) and is_plain_vit(weights.state) else load_weights
    return start(model, weights, verbose=verbose)


def find_weights(source: str | Path) -> Weights:
    """Weights of a file, a folder, or a timm model by name; see `initialise`."""
    path = Path(source).expanduser()
    if path.exists():
        return as_weights(path)
    if not timm.is_model(str(source).partition(".")[0]):
        raise FileNotFoundError(
            f"{str(source)!r} is neither a file of weights nor a model of timm's: give a path, or a name such as "
            "vit_base_patch16_224.augreg_in21k"
        )
    try:
        vit = timm.create_model(str(source), pretrained=True)
    except Exception as error:  # there are many kinds of network errors
        raise ValueError(
            f"timm could not fetch {source} ({type(error).__name__}): download the file and give its path instead"
        ) from error
    if not is_plain_vit(vit.state_dict()):
        raise ValueError(
            f"{source} is no plain ViT but a {type(vit).__name__}: take one of timm's vit_ or deit_ models"
        )
    return Weights(vit.state_dict(), str(source), tuple(vit.patch_embed.grid_size), vit.blocks[0].attn.num_heads)


def warm_start(
    model: LookupViT,
    source: str | Path | Mapping[str, Tensor] | Weights,
    *,
    gains: Gains | tuple[float, float, float] = Gains(),  # noqa: B008 (immutable)
    grid: tuple[int, int] | None = None,
    verbose: bool = True,
) -> Report:
    """Starts a LookupViT from the weights of a plain ViT of the same width, and prints a table of what it did.

    Image size, patch size and classes may differ, as in `load_weights`; a video model (`LookupViViT`) takes an image
    ViT. LayerScale of the ViT is folded into its layers, and LayerScale of the model begins at one. If the classifiers
    fit, that of the lookup tokens starts at zero, so that at first that of the compressed
    tokens decides alone.

    Args:
        model: A `LookupViT`, no deeper than the ViT.
        source: Weights of a timm ViT or of `ViT`: a file, or a state dict.
        gains: See `Gains`.
        grid: Token grid (h, w) of the weights' positions, if neither the file nor their number tells it.
        verbose: Whether to print the table.

    Returns:
        What became of each tensor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For weights that are not a plain ViT's or do not fit, in one line.
    """
    gains = Gains(*gains)
    weights = as_weights(source)
    if not is_plain_vit(weights.state):
        raise ValueError(f"weights {weights.source} are no plain ViT's: load_weights takes those of a LookupViT")
    vit, dropped, notes = plain_vit(weights.state, grid or weights.grid, tuple(facts(model)["grid"])[-2:])
    notes += fold_layer_scale(vit)
    depth = 1 + max(int(name.split(".")[1]) for name in vit if name.startswith("blocks."))
    if depth != model.depth:
        raise ValueError(
            f"weights {weights.source} have {depth} blocks, this model {model.depth}: build it with depth={depth}"
        )
    width = vit["blocks.0.attn.qkv.weight"].shape[1]
    if width != model.embed_dim:
        raise ValueError(
            f"weights {weights.source} are of width {width}, this model of {model.embed_dim}: build it with "
            f"embed_dim={width}"
        )
    state, derived, headless = _translate(vit, model, gains)
    dropped = {**weights.dropped, **dropped, **headless}
    start = Weights(state, weights.source, weights.grid, weights.num_heads, dropped)
    new, report = fit_weights(model, start, grid=grid, ignore=dict.fromkeys(_OWN_NORMS, "a ViT has no such norm"))
    report.derived |= {name: how for name, how in derived.items() if name in report.loaded}
    report.loaded = [name for name in report.loaded if name not in derived]
    report.notes += notes
    if weights.num_heads is None:
        report.notes.append(
            f"the weights do not say how many attention heads they have: taken to be {facts(model)['num_heads']}"
        )
    if verbose:
        report.show()
    report.check()
    model.load_state_dict(new)
    return report


def _translate(
    vit: Mapping[str, Tensor], model: LookupViT, gains: Gains
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """A ViT's weights under LookupViT's names; how those that are not copies were made; names left out, and why."""
    rest, own, dropped = dict(vit), model.state_dict(), {}
    copies = {f"embed.{part}": rest.pop(f"patch_embed.{part}") for part in ("proj.weight", "proj.bias")}
    copies["embed.pos_embed"] = rest.pop("pos_embed")
    made: dict[str, tuple[Tensor, str]] = {}
    for i in range(model.depth):
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): rest.pop(name) for name in list(rest) if name.startswith(prefix)}
        copies |= {prefix + name.replace("norm2.", "mlp.norm."): value for name, value in block.items()}
        made |= {prefix + name: value for name, value in _branches(block, model.blocks[i], gains).items()}
    norm = {part: rest.pop(f"norm.{part}") for part in _PARTS}
    head = {part: rest.pop(f"head.{part}") for part in _PARTS if f"head.{part}" in rest}
    for kind in model.heads:
        copies |= {f"norms.{kind}.{part}": value for part, value in norm.items()}
        names = {f"heads.{kind}.fc.{part}": value for part, value in head.items()}
        if model.num_classes == 0:
            dropped |= {f"head.{part}": "this model has no classifier" for part in head}
        elif kind == "lookup" and len(model.heads) == 2 and all(own[n].shape == v.shape for n, v in names.items()):
            made |= {n: (torch.zeros_like(v), "zero: at first the compressed tokens decide") for n, v in names.items()}
        else:
            copies |= names
    copies |= rest  # names that are not known above must become errors
    made = {name: value for name, value in made.items() if name in own}  # the model may lack some branches
    state = {**copies, **{name: value for name, (value, _) in made.items()}}
    return state, {name: how for name, (_, how) in made.items()}, dropped


def _branches(vit: dict[str, Tensor], block: LookupViTBlock, gains: Gains) -> dict[str, tuple[Tensor, str]]:
    """Weights from a ViT block for the branches that only LookupViT has: name to value and how it was made."""
    q, k, v = vit["attn.qkv.weight"].chunk(3)  # (3 D, D) -> 3 x (D, D)
    bias = vit.get("attn.qkv.bias")
    q_bias, _, v_bias = (torch.zeros(3 * len(q)) if bias is None else bias).chunk(3)
    out, out_bias = vit["attn.proj.weight"], vit["attn.proj.bias"]
    attention = "of the ViT's attention"
    made = {
        "cross.q.weight": (q, f"Q {attention}"),
        "cross.q.bias": (q_bias, f"Q {attention}"),
        "cross.kv.weight": (torch.cat([k, v]), f"K, V {attention}"),
        # V has no bias here: the rows of A sum to one, so that the ViT's bias of V passes through to the output.
        "cross.proj.weight": (gains.gather * out, f"output {attention}, times {gains.gather:g}"),
        "cross.proj.bias": (gains.gather * (out_bias + out @ v_bias), f"output {attention}, times {gains.gather:g}"),
        "cross.q_infuse.weight": (q, f"Q {attention}"),
        "cross.q_infuse.bias": (q_bias, f"Q {attention}"),
        "cross.k_infuse.weight": (k, f"K {attention}"),
        "cross.v_infuse.weight": (v, f"V {attention}"),
        "cross.v_infuse.bias": (v_bias, f"V {attention}"),
        "cross.proj_infuse.weight": (gains.infuse * out, f"output {attention}, times {gains.infuse:g}"),
        "cross.proj_infuse.bias": (gains.infuse * out_bias, f"output {attention}, times {gains.infuse:g}"),
    }
    if bias is None:
        made["attn.qkv.bias"] = (torch.zeros(3 * len(q)), "zero: the ViT has none")
    norms = ("norm_compressed", "norm_lookup", "norm_infuse", "norm_ask") if block.cross.cross_norm == "input" else ()
    for norm, part in product(norms, _PARTS):
        made[f"cross.{norm}.{part}"] = (vit[f"norm1.{part}"], f"the norm {attention}")
    if block.update_lookup:
        units = _heaviest(vit["mlp.fc1.weight"], vit["mlp.fc2.weight"], block.lookup_mlp.fc1.out_features)
        kept = f"{len(units)} of the ViT's {len(vit['mlp.fc1.weight'])} hidden units"
        made |= {f"lookup_mlp.norm.{part}": (vit[f"norm2.{part}"], "the norm of the ViT's MLP") for part in _PARTS}
        made |= {f"lookup_mlp.fc1.{part}": (vit[f"mlp.fc1.{part}"][units], kept) for part in _PARTS}
        gain, how = gains.lookup_mlp, f"{kept}, times {gains.lookup_mlp:g}"
        made["lookup_mlp.fc2.weight"] = (gain * vit["mlp.fc2.weight"][:, units], how)
        made["lookup_mlp.fc2.bias"] = (gain * vit["mlp.fc2.bias"], how)
    return made


def _heaviest(fc1: Tensor, fc2: Tensor, count: int) -> Tensor:
    """Indices, in order, of the hidden units with the largest `|fc1 row| |fc2 column|`, from `(F, D)` and `(D, F)`."""
    weight = fc1.norm(dim=1) * fc2.norm(dim=0)  # (F,)
    return weight.topk(min(count, len(weight))).indices.sort().values
