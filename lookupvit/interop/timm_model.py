"""LookupViT as a model of timm, with timm's interface for features and classifiers.

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

    With `features_only=True` timm returns the lookup tokens after chosen blocks as maps `(B, D, h, w)`.
    """

    architecture = "LookupViT"  # the class that a folder of weights names

    @wraps(LookupViT.__init__)  # with its signature, from which a folder of weights gets its arguments
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
        tokens, kept = super().forward_intermediates(x, wanted, compressed_size)
        chosen = []
        for state in kept:
            value = self.norms["lookup"](state.lookup) if norm else state.lookup
            if output_fmt == "NCHW":
                value = value.transpose(1, 2).unflatten(2, state.grid_size)  # (B, N, D) -> (B, D, h, w)
            chosen.append(value)
        return chosen if intermediates_only else (tokens, chosen)

    def forward_head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Logits `(B, C)`, or with `pre_logits` the pooled tokens `(B, D)`: compressed where the model has them."""
        if not pre_logits:
            return super().forward_head(tokens)
        return (tokens.lookup if tokens.compressed is None else tokens.compressed).mean(dim=1)

    def get_classifier(self) -> nn.Module:
        """The classifiers, by name of their tokens."""
        return self.heads

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifiers by new ones for `num_classes` classes; 0 gives pooled features.

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
    """Builds a model for `timm.create_model`.

    Args:
        name: Name of the model.
        defaults: The arguments that the name stands for.
        pretrained: Whether to load weights. There are none to download, so a file must be named:
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
