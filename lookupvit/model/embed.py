"""Pixels to lookup tokens: non-overlapping patches through a convolution, plus learnable positions.

Letters: B batch, C channels, (Y, X) pixels, (h, w) lookup grid, N = h w lookup tokens, D embed_dim.
"""

import torch
from torch import Tensor, nn

from lookupvit.model.grid import grid_of, resize_tokens


class PatchEmbed(nn.Module):
    """Image to tokens with positions.

    The positions live on the grid of `img_size`; another image size resizes them, so any size that the patch divides,
    square or not, is accepted.

    Args:
        img_size: native image size (Y, X).
        patch_size: patch (y, x).
        in_chans: image channels.
        embed_dim: D.
        antialias: antialiased resize of the positions when they shrink.
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
            tokens `(B, N, D)` and their grid (h, w).

        Raises:
            ValueError: for a wrong number of axes or channels, or a size that the patch does not divide.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"expected images of shape (B, {self.in_chans}, height, width), got {tuple(x.shape)}")
        grid = grid_of((x.shape[2], x.shape[3]), self.patch_size)
        # (B, C, Y, X) -> (B, D, h, w) -> (B, N, D); contiguous, for every residual sum after it keeps this layout, and
        # LayerNorm would copy each one of them.
        tokens = self.proj(x).flatten(2).transpose(1, 2).contiguous()
        return tokens + resize_tokens(self.pos_embed, self.grid_size, grid, self.antialias), grid
