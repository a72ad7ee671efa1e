"""Clips to lookup tokens: a convolution over non-overlapping tubelets, plus learnable position embeddings.

Letters: B batch, C channels, T frames, (Y, X) pixels, (t, h, w) lookup grid, N = t h w lookup tokens, D embed_dim.
"""

import torch
from torch import Tensor, nn

from lookupvit.grid import grid_of, resize_tokens


class TubeletEmbed(nn.Module):
    """Clips to lookup tokens with position embeddings, one time index after the other.

    The position embeddings are stored for the grid of `clip_size` and resized for another number of frames or another
    image size.

    Args:
        clip_size: Native clip (T, Y, X).
        tubelet: Tubelet (t, y, x).
        in_chans: Channels.
        embed_dim: D.
        antialias: Whether the position embeddings are resized with antialiasing when they shrink.
    """

    def __init__(
        self,
        clip_size: tuple[int, int, int] = (32, 224, 224),
        tubelet: tuple[int, int, int] = (2, 16, 16),
        in_chans: int = 3,
        embed_dim: int = 768,
        antialias: bool = True,
    ):
        super().__init__()
        self.patch_size = tuple(tubelet)
        self.in_chans = in_chans
        self.grid_size = grid_of(clip_size, self.patch_size, "clip")
        self.antialias = antialias
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        t, h, w = self.grid_size
        self.pos_embed = nn.Parameter(torch.empty(1, t * h * w, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Embeds a batch.

        Args:
            x: `(B, C, T, Y, X)`.

        Returns:
            Tokens `(B, N, D)` and their grid (t, h, w).

        Raises:
            ValueError: For a wrong number of axes or channels, or a size that the tubelet does not divide.
        """
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"expected clips of shape (B, {self.in_chans}, frames, height, width), got {tuple(x.shape)}"
            )
        grid = grid_of(tuple(x.shape[2:]), self.patch_size, "clip")
        # (B, C, T, Y, X) -> (B, D, t, h, w) -> (B, N, D); contiguous, see PatchEmbed
        tokens = self.proj(x).flatten(2).transpose(1, 2).contiguous()
        return tokens + resize_tokens(self.pos_embed, self.grid_size, grid, self.antialias), grid
