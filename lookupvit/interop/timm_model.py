"""LookupViT as a model of timm, with timm's interface for features and classifiers.

Letters: B batch, D embed_dim, (h, w) lookup grid.
"""

from contextlib import nullcontext
from functools import wraps
from math import prod
from typing import Any

import torch
import torch.fx
from timm.models import register_notrace_module
from timm.models._builder import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lookupvit.grid import Tokens, to_2tuple
from lookupvit.model.block import LookupViTBlock
from lookupvit.model.init import init_linear_layers
from lookupvit.model.layers import PatchEmbed, PooledHead
from lookupvit.model.lookupvit import LookupViT
from lookupvit.weights.timm_config import pretrained_config

# Their ways depend on shapes and devices, which torch.fx does not know: they are one node each.
register_notrace_module(PatchEmbed)
register_notrace_module(LookupViTBlock)


class TimmLookupViT(LookupViT):
    """`LookupViT` with timm's interface; the same parameters under the same names.

    Features are one tensor, as of a ViT of timm: the M compressed tokens first, as its prefix tokens, then the N lookup
    tokens, which are the map; of a model with one head its tokens alone. With `features_only=True` timm returns the
    lookup tokens after chosen blocks as maps `(B, D, h, w)`.
    """

    architecture = "LookupViT"  # the class that a folder of weights names
    global_pool = "avg"
    _tokens, _states = LookupViT.forward_features, LookupViT.forward_intermediates

    @wraps(LookupViT.__init__)  # with its signature, from which a folder of weights gets its arguments
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_features = self.head_hidden_size = self.embed_dim
        reduction = max(self.patch_size)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": reduction} for i in range(self.depth)
        ]

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.embed.in_chans

    @property
    def num_prefix_tokens(self) -> int:
        """M, the number of compressed tokens at the front of the features; 0 for a model without them there."""
        return 0 if self.head == "lookup" else prod(self.compressed_size)

    def forward_features(
        self, x: Tensor, compressed_size: int | tuple[int, ...] | None = None, head: str | None = None
    ) -> Tensor:
        """Images `(B, C, Y, X)` to normalised tokens `(B, M + N, D)`; see `LookupViT.forward_tokens`."""
        return _joined(self._tokens(x, compressed_size, head))

    def forward(
        self, x: Tensor, compressed_size: int | tuple[int, ...] | None = None, head: str | None = None
    ) -> Tensor:
        """Images to logits, as `LookupViT.forward`; with `global_pool=""` of each token, `(B, M + N, C)`."""
        if isinstance(compressed_size, torch.fx.Proxy):  # torch.fx: its graph is that of the model's own size and head
            x, compressed_size, head = _of_defaults(x, compressed_size, head), None, None
        return self._classified(self._tokens(x, compressed_size, head))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        compressed_size: int | tuple[int, ...] | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Lookup tokens after chosen blocks, with timm's arguments.

        Args:
            x: `(B, C, Y, X)`.
            indices: Number of last blocks, or the blocks' indices; all by default.
            norm: Whether to apply the final norm of the lookup tokens.
            stop_early: Without effect; the later blocks run as well.
            output_fmt: "NCHW" for maps `(B, D, h, w)`, "NLC" for tokens `(B, N, D)`.
            intermediates_only: Whether to leave out the final tokens.
            compressed_size: Compressed grid of this call.

        Raises:
            ValueError: For another format, or a norm that does not exist.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is not known: choose one of NCHW, NLC")
        if norm and "lookup" not in self.norms:
            raise ValueError(f"norm=True needs a norm of the lookup tokens: this model has head={self.head!r}")
        wanted, _ = feature_take_indices(self.depth, indices)
        tokens, kept = self._states(x, wanted, compressed_size)
        chosen = []
        for state in kept:
            value = self.norms["lookup"](state.lookup) if norm else state.lookup
            if output_fmt == "NCHW":
                value = value.transpose(1, 2).unflatten(2, state.grid_size)  # (B, N, D) -> (B, D, h, w)
            chosen.append(value)
        return chosen if intermediates_only else (_joined(tokens), chosen)

    def forward_head(
        self, x: Tensor, pre_logits: bool = False, compressed_size: int | tuple[int, ...] | None = None
    ) -> Tensor:
        """Features `(B, M + N, D)` to logits `(B, C)`.

        Args:
            x: From `forward_features`.
            pre_logits: Whether to return the pooled features `(B, D)`: the mean over the heads, as of a model with
                `num_classes=0`.
            compressed_size: The compressed grid that `forward_features` was given; the model's own by default.
        """
        count = 0
        if self.head != "lookup":
            count = self.num_prefix_tokens if compressed_size is None else prod(to_2tuple(compressed_size))
        compressed, lookup = x[:, :count], x[:, count:]  # (B, M, D), (B, N, D); either may be empty
        return self._classified(
            Tokens(compressed if compressed.shape[1] else None, lookup if lookup.shape[1] else None, None, ()),
            pre_logits,
        )

    def _classified(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Tokens to logits, or to pooled features; without pooling to one of either for each token."""
        if self.global_pool == "avg" and not pre_logits:
            return super().forward_head(tokens)
        named = {"compressed": tokens.compressed, "lookup": tokens.lookup}
        found = []
        for name, head in self.heads.items():
            if named[name] is not None:
                value = named[name] if self.global_pool == "" else named[name].mean(dim=1)
                value = head.drop(value)
                found.append(value if pre_logits else head.fc(value))
        if self.global_pool == "":
            return torch.cat(found, dim=1)
        return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)

    def get_classifier(self) -> nn.Module:
        """The classifiers, by name of their tokens."""
        return self.heads

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifiers by new ones for `num_classes` classes.

        Args:
            num_classes: C; 0 gives features.
            global_pool: "avg", or "" for tokens that are not pooled; None leaves it as it is.

        Raises:
            ValueError: For another `global_pool`.
        """
        if global_pool is not None:
            self.global_pool = _checked(global_pool)
        self.num_classes = num_classes
        for name, head in self.heads.items():
            new = PooledHead(self.embed_dim, num_classes, head.drop.p)
            init_linear_layers(new, self.weight_init)
            self.heads[name] = new.to(self.embed.pos_embed).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups parameters by layer."""
        return {"stem": r"^embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norms|^heads", (99999,))]}


@torch.fx.wrap
def _of_defaults(x: Tensor, compressed_size: Any, head: Any) -> Tensor:
    if compressed_size is not None or head is not None:
        raise ValueError("a graph of torch.fx has one compressed_size and one head: set the model's own, then trace it")
    return x


def _checked(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool={global_pool!r} is not known: LookupViT averages, give 'avg', or '' for tokens")
    return global_pool


def _joined(tokens: Tokens) -> Tensor:
    """`(B, M, D)` and `(B, N, D)` to `(B, M + N, D)`; one of them alone as it is."""
    parts = [part for part in (tokens.compressed, tokens.lookup) if part is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def build(name: str, defaults: dict[str, Any], pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a model for `timm.create_model`.

    Args:
        name: Name of the model.
        defaults: The arguments that the name stands for.
        pretrained: Whether to load weights. There are none to download, so a file must be named:
            `pretrained_cfg_overlay={"file": ...}`, or a folder: `create_model("local-dir:FOLDER", pretrained=True)`.
        **kwargs: Arguments of `LookupViT` in place of the defaults, and timm's own such as `features_only`,
            `global_pool`, `device` and `dtype`.

    Raises:
        ValueError: For `pretrained` without a file.
    """
    given = kwargs.get("pretrained_cfg")
    known = {**(given if isinstance(given, dict) else {}), **(kwargs.get("pretrained_cfg_overlay") or {})}
    if pretrained and not (known.get("file") or known.get("source")):  # a folder and the Hub are sources
        raise ValueError(
            f"there are no pretrained weights of {name} to fetch: give a file, pretrained_cfg_overlay={{'file': ...}}, "
            "or start from a ViT with lookupvit.warm_start"
        )
    pool = _checked(kwargs.pop("global_pool", "avg"))
    kwargs["pretrained_cfg"] = given or pretrained_config(name, {**defaults, "head": kwargs.get("head", "both")})
    features = {"out_indices": 3, "feature_cls": "getter"}
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    with nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(TimmLookupViT, name, pretrained, feature_cfg=features, **{**defaults, **kwargs})
    model.to(device=device, dtype=dtype)
    if isinstance(model, TimmLookupViT):
        model.global_pool = pool
    return model
