"""The small layers around the blocks: patch embedding, MLP, LayerScale and pooled classifier.

Letters: B batch, C channels, (Y, X) pixels, (h, w) lookup grid, N = h w lookup tokens, T tokens of either kind,
D embed_dim, F hidden width of an MLP.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import LayerScale
from torch import Tensor, nn

from lookupvit.checks import check_residual_init
from lookupvit.grid import grid_of, resize_tokens
from lookupvit.model.products.norm_mlp import norm_mlp, stores_less

HEADS = ("both", "compressed", "lookup")  # which tokens of a LookupViT are classified


def layer_scale(dim: int, residual_init: str | float) -> nn.Module:
    """LayerScale of width D = `dim` where `residual_init` is a number, otherwise the identity."""
    value = check_residual_init(residual_init)
    return nn.Identity() if value is None else LayerScale(dim, value)


class Mlp(nn.Module):
    """The MLP of a block with its norm: LayerNorm, Linear, GELU, Linear, dropout.

    Args:
        dim: D.
        hidden: F.
        drop: Dropout after the last layer.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        if stores_less(x, self.norm, self.fc1, self.fc2):
            return self.drop(norm_mlp(x, self.norm, self.fc1, self.fc2))  # the same, with less to store
        return self.drop(self.fc2(F.gelu(self.fc1(self.norm(x)))))


class PooledHead(nn.Module):
    """Global average pool of normalised tokens, dropout, and a linear classifier.

    Args:
        dim: D.
        num_classes: Number of classes; 0 gives the pooled features themselves.
        drop_rate: Dropout before the classifier.
    """

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0):
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, num_classes)`, or to `(B, D)` without classes."""
        return self.fc(self.drop(tokens.mean(dim=1)))


class PatchEmbed(nn.Module):
    """Images to lookup tokens: a convolution over non-overlapping patches, plus learnable position embeddings.

    The position embeddings are stored for the grid of `img_size` and resized for images of another size. Any size that
    the patch divides is accepted, square or not.

    Args:
        img_size: Native image size (Y, X).
        patch_size: Patch (y, x).
        in_chans: Image channels.
        embed_dim: D.
        antialias: Whether the position embeddings are resized with antialiasing when they shrink.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (224, 224),
        patch_size: tuple[int, int] = (16, 16),
        in_chans: int = 3,
        embed_dim: int = 768,
        antialias: bool = True,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.grid_size = grid_of(img_size, patch_size)
        self.antialias = antialias
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embeds a batch.

        Args:
            x: `(B, C, Y, X)`.

        Returns:
            Tokens `(B, N, D)` and their grid (h, w).

        Raises:
            ValueError: For a wrong number of axes or channels, or a size that the patch does not divide.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"expected images of shape (B, {self.in_chans}, height, width), got {tuple(x.shape)}")
        grid = grid_of((x.shape[2], x.shape[3]), self.patch_size)
        # (B, C, Y, X) -> (B, D, h, w) -> (B, N, D). Contiguous, because every residual sum after it keeps this layout,
        # and LayerNorm would copy each of them.
        tokens = self.proj(x).flatten(2).transpose(1, 2).contiguous()
        return tokens + resize_tokens(self.pos_embed, self.grid_size, grid, self.antialias), grid
