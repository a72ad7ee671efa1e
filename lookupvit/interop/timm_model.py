"""LookupViT as a model of timm's, with timm's ways to ask for features and classifiers.

Letters: B batch, D embed_dim, (h, w) lookup grid.
"""

from functools import wraps
from typing import Any

from timm.models._builder import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lookupvit.grid import Tokens
from lookupvit.model.layers import PooledHead, init_linear_layers
from lookupvit.model.lookupvit import LookupViT

_IMAGENET = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 0.875}


class TimmLookupViT(LookupViT):
    """`LookupViT` with timm's interface; the same parameters under the same names.

    With `features_only=True` timm gets the lookup tokens of the blocks asked for as maps `(B, D, h, w)`.
    """

    architecture = "LookupViT"  # what a folder of weights says

    @wraps(LookupViT.__init__)  # its arguments, by name: what a folder of weights keeps
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_features = self.head_hidden_size = self.embed_dim
        reduction = max(self.patch_size)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": reduction} for i in range(self.depth)
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        compressed_size: int | tuple[int, ...] | None = None,
    ) -> list[Tensor] | tuple[Tokens, list[Tensor]]:
        """Lookup tokens after chosen blocks, with timm's arguments.

        Args:
            x: `(B, C, Y, X)`.
            indices: The last so many blocks, or their indices; all by default.
            norm: Apply the final norm of the lookup tokens.
            stop_early: Has no effect: later blocks are few and run.
            output_fmt: "NCHW" for maps `(B, D, h, w)`, "NLC" for tokens `(B, N, D)`.
            intermediates_only: Leave the final tokens out.
            compressed_size: Compressed grid of this call.

        Raises:
            ValueError: For another format, or a norm that does not exist.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is not known: choose one of NCHW, NLC")
        if norm and "lookup" not in self.norms:
            raise ValueError(f"norm=True needs a norm of the lookup tokens: this model has head={self.head!r}")
        wanted, _ = feature_take_indices(self.depth, indices)
        tokens, kept = super().forward_intermediates(x, wanted, compressed_size)
        found = []
        for state in kept:
            value = self.norms["lookup"](state.lookup) if norm else state.lookup
            if output_fmt == "NCHW":
                value = value.transpose(1, 2).unflatten(2, state.grid_size)  # (B, N, D) -> (B, D, h, w)
            found.append(value)
        return found if intermediates_only else (tokens, found)

    def forward_head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Logits `(B, C)`, or with `pre_logits` the pooled tokens `(B, D)`: compressed where the model has them."""
        if not pre_logits:
            return super().forward_head(tokens)
        return (tokens.lookup if tokens.compressed is None else tokens.compressed).mean(dim=1)

    def get_classifier(self) -> nn.Module:
        """The classifiers, by name of their tokens."""
        return self.heads

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers of so many classes; 0 for pooled features. The pool is always the average.

        Raises:
            ValueError: For another `global_pool`.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool={global_pool!r} is not known: LookupViT averages, give 'avg' or None")
        self.num_classes = num_classes
        for name, head in self.heads.items():
            self.heads[name] = PooledHead(self.embed_dim, num_classes, head.drop.p).to(self.embed.pos_embed.device)
            init_linear_layers(self.heads[name], self.weight_init)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm groups parameters by layer."""
        return {"stem": r"^embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norms|^heads", (99999,))]}


def build(name: str, defaults: dict[str, Any], pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model as `timm.create_model` builds it.

    Args:
        name: Of the model.
        defaults: Its arguments.
        pretrained: Load weights: there are none to fetch, so a file must be named,
            `pretrained_cfg_overlay={"file": ...}`.
        **kwargs: Arguments of `LookupViT` in place of the defaults, and timm's own such as `features_only`.

    Raises:
        ValueError: For `pretrained` without a file.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and not overlay.get("file"):
        raise ValueError(
            f"there are no pretrained weights of {name} to fetch: give a file, pretrained_cfg_overlay={{'file': ...}}, "
            "or start from a ViT with lookupvit.warm_start"
        )
    kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or {
        **_IMAGENET,
        "architecture": name,
        "input_size": (3, defaults["img_size"], defaults["img_size"]),
        "num_classes": 1000,
        "fixed_input_size": False,
        "pool_size": None,
        "first_conv": "embed.proj",
        "classifier": ("heads.compressed.fc", "heads.lookup.fc"),
    }
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(TimmLookupViT, name, pretrained, feature_cfg=features, **{**defaults, **kwargs})
