"""The configuration with which Hugging Face transformers builds a `LookupViT` or a `ViT` from an exported folder."""

import inspect
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from lookupvit.checkpoints.contents import MODEL_TYPE
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.vit import ViT


@strict
class LookupViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Arguments of `LookupViT`, under their own names and under those of transformers.

    `hidden_size`, `image_size`, `num_hidden_layers` and `num_channels` are other names of `embed_dim`, `img_size`,
    `depth` and `in_chans`; `num_classes` is `num_labels`. With `compressed_size=None` the model is the plain `ViT`.
    The backbone's stages are "stem" (the embedding) and "stage1" to "stageL" (the blocks); `out_features` or
    `out_indices` choose among them.
    """

    model_type = MODEL_TYPE
    attribute_map = {
        "hidden_size": "embed_dim",
        "image_size": "img_size",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "num_channels": "in_chans",
        "num_classes": "num_labels",
    }

    img_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float | int = 4.0
    lookup_mlp_ratio: float | int = 0.5
    qkv_bias: bool = True
    compressed_size: int | list[int] | tuple[int, ...] | None = None
    head: str = "both"
    drop_rate: float | int = 0.0
    pos_drop_rate: float | int = 0.0
    proj_drop_rate: float | int = 0.0
    drop_path_rate: float | int = 0.0
    reuse: str = "transpose"
    cross_norm: str = "input"
    antialias: bool = True
    infuse: bool = True
    path: str = "auto"
    grad_checkpointing: bool = False
    weight_init: str = "trunc_normal"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.depth + 1))]
        chosen = {key: kwargs.pop(key, None) for key in ("out_features", "out_indices")}
        self.set_output_features_output_indices(**chosen)
        classes = kwargs.pop("num_classes", None)
        if classes is not None and self.id2label is None:
            kwargs.setdefault("num_labels", classes)
        super().__post_init__(**kwargs)

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `LookupViT`, or of `ViT`."""
        known = inspect.signature(self.model_class()).parameters
        values = {key: getattr(self, key) for key in known}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    def model_class(self) -> type[nn.Module]:
        """`LookupViT`; `ViT` without a compressed size."""
        return ViT if self.compressed_size is None else LookupViT

    def to_dict(self) -> dict[str, Any]:
        """Plain data that the readers of this project take, too: with `num_classes` and the project's architecture."""
        values = super().to_dict()
        described = {key: value for key, value in values.items() if key != "stage_names"}
        return described | {"num_classes": self.num_labels, "architectures": [self.model_class().__name__]}
