"""The temporal transformer of factorised video models, and the layer numbers of their parameters.

Letters: B batch, t time indices, K tokens of a time index, D embed_dim.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lookupvit.checks import check_choice, check_residual_init
from lookupvit.grid import resize_tokens
from lookupvit.sizes import ARRANGEMENTS


def check_model(model: str) -> bool:
    """Whether `model` is "factorised"; raises a one-line ValueError for anything else but "joint"."""
    return check_choice("model", model, ARRANGEMENTS) == "factorised"


def vit_blocks(
    depth: int,
    dim: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    proj_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    residual_init: str | float = "default",
) -> nn.ModuleList:
    """Blocks of timm's ViT, with stochastic depth that grows linearly from 0 to `drop_path_rate`."""
    return nn.ModuleList(
        Block(
            dim,
            num_heads,
            mlp_ratio,
            qkv_bias,
            proj_drop=proj_drop_rate,
            init_values=check_residual_init(residual_init),
            drop_path=drop_path_rate * i / max(depth - 1, 1),
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        for i in range(depth)
    )


class TemporalTransformer(nn.Module):
    """ViT blocks over time: they read one pooled token per time index and a class token, and return the class token.

    Args:
        grid_size: Number of time indices of the native clip; for another number the position embeddings are resized.
        dim: D.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over D.
        qkv_bias: Biases on Q, K and V.
        pos_drop_rate: Dropout after the positions.
        proj_drop_rate: Dropout after output projections and MLPs.
        drop_path_rate: Stochastic depth of the last block.
        residual_init: A number begins LayerScale there; the model does the rest, see `init_residual_branches`.
    """

    def __init__(
        self,
        grid_size: int,
        dim: int,
        depth: int = 4,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        residual_init: str | float = "default",
    ):
        super().__init__()
        self.grid_size = grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = vit_blocks(
            depth, dim, num_heads, mlp_ratio, qkv_bias, proj_drop_rate, drop_path_rate, residual_init
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, tokens: Tensor, t: int) -> Tensor:
        """Normalised tokens `(B, t K, D)` of a clip of `t` time indices to its class token `(B, 1, D)`."""
        x = tokens.unflatten(1, (t, -1)).mean(dim=2)  # (B, t K, D) -> (B, t, K, D) -> (B, t, D)
        x = x + resize_tokens(self.pos_embed, (self.grid_size,), (t,))
        x = self.pos_drop(torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1))  # (B, 1 + t, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, :1])


class ClipLayers:
    """Layer numbers of the parameters, and which of them do not decay, for `LookupViViT` and `ViViT`.

    Expects `depth`, and `temporal` (a `TemporalTransformer` or None).
    """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        temporal = () if self.temporal is None else ("temporal.cls_token", "temporal.pos_embed")
        return {"embed.pos_embed", *temporal}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, temporal blocks, heads."""
        return self.depth + 2 + (0 if self.temporal is None else len(self.temporal.blocks))

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: 0 the embedding, 1 to L the blocks, then the temporal blocks, and last the heads.

        What lies between the blocks and the temporal blocks belongs to the first temporal block.
        """
        first, *rest = name.split(".")
        if first == "embed":
            return 0
        if first == "blocks":
            return int(rest[0]) + 1
        if self.temporal is not None and first == "temporal" and rest[0] == "blocks":
            return self.depth + 1 + int(rest[1])
        between = first.startswith("norm") or (first == "temporal" and rest[0] in ("cls_token", "pos_embed"))
        return self.depth + 1 if self.temporal is not None and between else self.num_layers - 1
