"""Heads that turn a map of features into a map of class scores.

Letters: B batch, (h, w) lookup grid, N = h w, M compressed tokens, D embed_dim, C classes.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lookupvit.checks import check_heads
from lookupvit.model.dense.features import Maps
from lookupvit.model.init import init_linear_layers
from lookupvit.model.layers import Mlp


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution: the protocol by which DINOv3 evaluates features.

    Args:
        dim: D.
        num_classes: C.
        drop_rate: Dropout of whole channels before the convolution.
    """

    reads_compressed = False

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.drop = nn.Dropout2d(drop_rate)
        self.fc = nn.Conv2d(dim, num_classes, 1)
        nn.init.trunc_normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Maps) -> Tensor:
        """Logits `(B, C, h, w)`."""
        return self.fc(self.drop(self.norm(maps.features)))


class MaskTransformerHead(nn.Module):
    """Segmenter's mask transformer (arXiv 2105.05633): class queries go through blocks together with all N tokens.

    A class's map is the scalar product of its query with each token, both normalised. The blocks' self-attention is
    quadratic in N + C: beside a LookupViT this head costs more than the backbone where N is large.

    Args:
        dim: D.
        num_classes: C.
        depth: Number of blocks.
        num_heads: Attention heads of a block; the width of a head is that of ViT-B, 64, by default, where D allows it.
        drop_path_rate: Stochastic depth of each block.
    """

    reads_compressed = False

    def __init__(
        self,
        dim: int,
        num_classes: int,
        depth: int = 2,
        num_heads: int | None = None,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        num_heads = max(1, dim // 64) if num_heads is None else num_heads
        check_heads(dim, num_heads)
        self.queries = nn.Parameter(torch.empty(1, num_classes, dim))
        self.fc_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, drop_path=drop_path_rate) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc_tokens = nn.Linear(dim, dim, bias=False)
        self.fc_queries = nn.Linear(dim, dim, bias=False)
        self.norm_masks = nn.LayerNorm(num_classes)
        init_linear_layers(self)
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, maps: Maps) -> Tensor:
        """Logits `(B, C, h, w)`."""
        (B, _, h, w), C = maps.features.shape, self.queries.shape[1]
        tokens = self.fc_in(maps.features.flatten(2).transpose(1, 2))  # (B, D, h, w) -> (B, N, D)
        x = torch.cat([tokens, self.queries.expand(B, -1, -1)], dim=1)  # (B, N + C, D)
        for block in self.blocks:
            x = block(x)
        tokens, queries = self.norm(x).split([h * w, C], dim=1)
        tokens, queries = F.normalize(self.fc_tokens(tokens), dim=2), F.normalize(self.fc_queries(queries), dim=2)
        masks = self.norm_masks(tokens @ queries.transpose(1, 2))  # (B, N, C)
        return masks.transpose(1, 2).unflatten(2, (h, w))  # (B, N, C) -> (B, C, N) -> (B, C, h, w)


class CompressedQueryHead(nn.Module):
    """An experiment of this project: the compressed tokens are the queries of masks, and each mask has classes.

    Each cell of the map is shared out among the M compressed tokens, by a softmax over scalar products, and takes the
    classes of its shares; a linear classifier of the cell itself is added. Its cost per cell is `M (D + C) + D C`.

    Args:
        dim: D.
        num_classes: C.
        mlp_ratio: Hidden width over D of the MLP that makes a mask's query of a compressed token.
    """

    reads_compressed = True

    def __init__(self, dim: int, num_classes: int, mlp_ratio: float = 1.0):
        super().__init__()
        self.scale = dim**-0.5
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.fc_masks = nn.Linear(dim, num_classes)
        self.linear = LinearHead(dim, num_classes)
        init_linear_layers(self)

    def forward(self, maps: Maps) -> Tensor:
        """Logits `(B, C, h, w)`."""
        tokens = maps.features.flatten(2)  # (B, D, h, w) -> (B, D, N)
        shares = (self.mlp(maps.compressed) * self.scale @ tokens).softmax(dim=1)  # (B, M, N)
        classes = self.fc_masks(maps.compressed).transpose(1, 2)  # (B, M, C) -> (B, C, M)
        return self.linear(maps) + (classes @ shares).unflatten(2, maps.features.shape[2:])  # (B, C, N) -> (B, C, h, w)


HEADS = {"linear": LinearHead, "mask_transformer": MaskTransformerHead, "compressed_queries": CompressedQueryHead}
