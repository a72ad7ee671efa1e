"""LookupViViT: clips to two token sets to logits, jointly over space and time or factorised.

Letters: B batch, C channels, T frames, (Y, X) pixels, (t, h, w) lookup grid, N = t h w, (t', h', w') compressed grid,
M = t' h' w', D embed_dim, H heads, L depth.
"""

from torch import Tensor

from lookupvit.checks import check_positive
from lookupvit.grid import Tokens, check_compressed_size
from lookupvit.model.init import init_linear_layers, init_residual_branches
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.video.embed import TubeletEmbed
from lookupvit.model.video.temporal import ClipLayers, TemporalTransformer, check_model


class LookupViViT(ClipLayers, LookupViT):
    """LookupViT for clips `(B, C, T, Y, X)`: any number of frames and any image size that the tubelet divides.

    * model "joint": the blocks run over all tokens of the clip, with a compressed grid (t', h', w'). The heads are
      those of `LookupViT`.
    * model "factorised": the blocks run on each time index by itself, with a compressed grid (h', w') in each;
      stochastic depth is drawn for each time index, too. The final norm and the mean over the compressed tokens give
      one token per time index. A `TemporalTransformer` reads them, and its class token is classified. The only
      head is "compressed", so the last block does not update the lookup tokens.

    Args:
        model: "joint" or "factorised".
        num_frames: Native number of frames T. It fixes the grid of the position embeddings; a call may bring others.
        img_size: Native image size, int or (height, width).
        tubelet_size: Number of frames of a tubelet.
        patch_size: Patch size of a tubelet in pixels, int or (height, width).
        in_chans: Image channels.
        num_classes: Number of classes; 0 gives pooled features instead of logits.
        embed_dim: D.
        depth: L.
        num_heads: H.
        mlp_ratio: Hidden width of the compressed MLP over D, and of the temporal transformer's.
        lookup_mlp_ratio: Hidden width of the lookup MLP over D.
        qkv_bias: Biases of the attention projections, see `CrossAttention`.
        compressed_size: Default compressed grid, int or (t', h', w'). For a factorised model int, (h', w'), or
            (t, h', w') where t is the clip's number of time indices, all of which it keeps.
        temporal_depth: Number of blocks of the temporal transformer, for a factorised model.
        head: As in `LookupViT`. None means "both" for a joint model, and "compressed" for a factorised one, which has
            no other.
        drop_rate: Dropout before the classifiers.
        pos_drop_rate: Dropout after the embeddings of space and time.
        proj_drop_rate: Dropout after output projections and MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks, and again over
            the temporal blocks.
        reuse: See `LookupViT`, as for the next four arguments.
        cross_norm: "input" or "projection".
        antialias: Whether the resize from lookup to compressed tokens is antialiased.
        infuse: Whether the way back from compressed to lookup tokens exists.
        path: "auto", "plain", "absorbed" or "tiled".
        grad_checkpointing: Whether to compute each LookupViT block again in the backward pass instead of storing its
            activations; those of the few temporal blocks are stored.
        weight_init: How linear layers are initialised, see `init_linear_layers`.
        residual_init: How residual branches begin, see `LookupViT`.

    Raises:
        ValueError: For sizes that do not fit and options that do not exist, in one line.
    """

    def __init__(
        self,
        model: str = "joint",
        num_frames: int = 32,
        img_size: int | tuple[int, int] = 224,
        tubelet_size: int = 2,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 400,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        lookup_mlp_ratio: float = 0.5,
        qkv_bias: bool = True,
        compressed_size: int | tuple[int, ...] = 5,
        temporal_depth: int = 4,
        head: str | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        reuse: str = "transpose",
        cross_norm: str = "input",
        antialias: bool = True,
        infuse: bool = True,
        path: str = "auto",
        grad_checkpointing: bool = False,
        weight_init: str = "trunc_normal",
        residual_init: str | float = "default",
    ):
        factorised = check_model(model)
        check_positive(num_frames=num_frames, tubelet_size=tubelet_size, temporal_depth=temporal_depth)
        if factorised and head not in (None, "compressed"):
            raise ValueError(
                f"head={head!r} does not go with model='factorised', whose temporal transformer reads the compressed "
                "tokens: leave head out, or take model='joint'"
            )
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            lookup_mlp_ratio=lookup_mlp_ratio,
            qkv_bias=qkv_bias,
            compressed_size=1,  # for the patch embedding, which the tubelet embedding replaces below
            head="compressed" if factorised else head or "both",
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
            reuse=reuse,
            cross_norm=cross_norm,
            antialias=antialias,
            infuse=infuse,
            path=path,
            grad_checkpointing=grad_checkpointing,
            weight_init=weight_init,
            residual_init=residual_init,
        )
        self.factorised, self.num_frames, self.tubelet_size = factorised, num_frames, tubelet_size
        self.embed = TubeletEmbed(
            (num_frames, *self.img_size), (tubelet_size, *self.patch_size), in_chans, embed_dim, antialias=True
        )
        self.compressed_size = self.check_size(compressed_size)
        self.temporal = None
        if factorised:
            self.temporal = TemporalTransformer(
                self.embed.grid_size[0],
                embed_dim,
                temporal_depth,
                num_heads,
                mlp_ratio,
                qkv_bias,
                pos_drop_rate,
                proj_drop_rate,
                drop_path_rate,
                residual_init,
            )
            init_linear_layers(self.temporal, weight_init)
            init_residual_branches(self.temporal, residual_init)

    def check_size(
        self, compressed_size: int | tuple[int, ...], grid: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """The compressed size as (t', h', w'); for a factorised model t' is the clip's number of time indices.

        Args:
            compressed_size: Int or (t', h', w'); for a factorised model also (h', w').
            grid: Lookup grid (t, h, w); the native one by default.

        Raises:
            ValueError: If it does not fit the grid, in one line.
        """
        grid = self.embed.grid_size if grid is None else grid
        if not self.factorised:
            return check_compressed_size(compressed_size, grid)
        if not isinstance(compressed_size, int) and len(compressed_size) == 3:
            if compressed_size[0] != grid[0]:
                raise ValueError(
                    f"compressed_size {tuple(compressed_size)} does not fit a factorised model, which keeps every time "
                    f"index: its first entry must be {grid[0]} for this clip, or give (h', w') alone"
                )
            compressed_size = compressed_size[1:]
        return grid[0], *check_compressed_size(compressed_size, grid[1:])

    def forward_tokens(
        self,
        lookup: Tensor,
        grid: tuple[int, ...],
        compressed_size: int | tuple[int, ...] | None = None,
        head: str | None = None,
        intermediates: list[Tokens] | None = None,
    ) -> Tokens:
        """Runs the blocks and the final norms, as `LookupViT.forward_tokens`.

        The compressed tokens of a factorised model are `(B, t h' w', D)`, one time index after the other. The
        `attention` of its intermediates is `(B t, H, h' w', h w)`, each time index by itself.
        """
        if compressed_size is None:  # of a factorised model, whatever the number of frames
            compressed_size = self.compressed_size[1:] if self.factorised else self.compressed_size
        size = self.check_size(compressed_size, grid)
        if not self.factorised:
            return super().forward_tokens(lookup, grid, size, head, intermediates)
        t, *space = grid
        kept = None if intermediates is None else []
        lookup = lookup.unflatten(1, (t, -1)).flatten(0, 1)  # (B, t h w, D) -> (B, t, h w, D) -> (B t, h w, D)
        tokens = super().forward_tokens(lookup, tuple(space), size[1:], head, kept)
        if kept:
            intermediates.extend(_clip_tokens(of_block, t) for of_block in kept)
        return _clip_tokens(tokens, t)

    def forward_logits(self, tokens: Tokens) -> dict[str, Tensor]:
        """As `LookupViT.forward_logits`; a factorised model runs its temporal transformer first."""
        if self.factorised:
            tokens = tokens._replace(compressed=self.temporal(tokens.compressed, tokens.grid_size[0]))
        return super().forward_logits(tokens)


def _clip_tokens(tokens: Tokens, t: int) -> Tokens:
    """Puts the tokens of time indices `(B t, K, D)` together to those of clips, `(B, t K, D)`."""

    def joined(x: Tensor | None) -> Tensor | None:
        # (B t, K, D) -> (B, t, K, D) -> (B, t K, D)
        return None if x is None else x.unflatten(0, (-1, t)).flatten(1, 2)

    return Tokens(
        joined(tokens.compressed),
        joined(tokens.lookup),
        (t, *tokens.compressed_size),
        (t, *tokens.grid_size),
        tokens.attention,
    )
