"""LookupViT (arXiv 2407.12753): from images to two sets of tokens to logits.

An image becomes N lookup tokens; a fixed resize of their grid gives M compressed tokens, M much smaller than N. Each
block works on both sets, see `lookupvit/model/block.py`. At the end each set is averaged and classified.

Letters: B batch, C image channels, (Y, X) pixels, (h, w) lookup grid, N = h w, (h', w') compressed grid, M = h' w',
D embed_dim, H heads, L depth.
"""

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lookupvit.checks import CROSS_NORMS, REUSES, check_choice, check_heads, check_path, check_positive, check_ratios
from lookupvit.grid import Tokens, check_compressed_size, resize_tokens, to_2tuple
from lookupvit.model.block import LookupViTBlock
from lookupvit.model.encoder import EncoderMixin
from lookupvit.model.init import init_linear_layers, init_residual_branches
from lookupvit.model.layers import HEADS, PatchEmbed, PooledHead
from lookupvit.weights.hub import HubMixin

# Their arguments are numbers, which torch.fx is not to trace; with a traced grid they become one node of the graph.
torch.fx.wrap("check_compressed_size")
torch.fx.wrap("resize_tokens")


class LookupViT(EncoderMixin, HubMixin, nn.Module):
    """A vision transformer whose heavy layers run on a few compressed tokens.

    The compressed tokens are a fixed resize of the lookup tokens and have no parameters of their own. Each call may
    therefore choose any `compressed_size` that fits into the lookup grid, and any image size that the patch divides.

    Args:
        img_size: Native image size, int or (height, width). It fixes the grid of the position embeddings.
        patch_size: Patch size in pixels, int or (height, width).
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 gives pooled features instead of logits.
        embed_dim: D.
        depth: L, the number of blocks.
        num_heads: H.
        mlp_ratio: Hidden width of the compressed MLP over D (the paper's p = 4).
        lookup_mlp_ratio: Hidden width of the lookup MLP over D (the paper's 1 / q, q = 2).
        qkv_bias: Biases of the attention projections, see `CrossAttention`.
        compressed_size: Default compressed grid, int or (h', w').
        head: "compressed" or "lookup" classifies one set of tokens, "both" classifies each; the output is then the mean
            of the two logits.
        drop_rate: Dropout before the classifiers.
        pos_drop_rate: Dropout after the embedding.
        proj_drop_rate: Dropout after output projections and MLPs.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks.
        reuse: Which attention the way back takes: "transpose", "mean", "renormalize" or "fresh", see `CrossAttention`.
        cross_norm: Where the cross-attention normalises: "input" or "projection", see `CrossAttention`.
        antialias: Whether the resize from lookup to compressed tokens is antialiased.
        infuse: Whether the way back from compressed to lookup tokens exists; False is the unidirectional ablation.
        path: Order of the cross-attention's products: "auto", "plain", "absorbed" or "tiled", see `FastCrossAttention`.
            All of them compute the same function.
        grad_checkpointing: Whether to compute each block again in the backward pass instead of storing its activations.
        weight_init: How linear layers are initialised: "trunc_normal" or "xavier_uniform", see `init_linear_layers`.
        residual_init: How residual branches begin: "default" (as `weight_init` says), "zero", or a number, with which
            LayerScale begins; see `init_residual_branches`.

    Raises:
        ValueError: For sizes that do not fit and options that do not exist, in one line.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        lookup_mlp_ratio: float = 0.5,
        qkv_bias: bool = True,
        compressed_size: int | tuple[int, int] = (5, 5),
        head: str = "both",
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
        super().__init__()
        check_heads(embed_dim, num_heads)
        check_positive(depth=depth, in_chans=in_chans)
        check_ratios(mlp_ratio=mlp_ratio, lookup_mlp_ratio=lookup_mlp_ratio)
        check_choice("reuse", reuse, REUSES)
        check_choice("cross_norm", cross_norm, CROSS_NORMS)
        path = check_path(path, reuse)
        check_choice("head", head, HEADS)
        if head == "lookup" and not infuse:
            raise ValueError("head='lookup' with infuse=False never reads the compressed tokens: choose another head")
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.embed_dim, self.depth, self.num_classes = embed_dim, depth, num_classes
        self.head, self.antialias, self.grad_checkpointing = head, antialias, grad_checkpointing
        self.embed = PatchEmbed(self.img_size, self.patch_size, in_chans, embed_dim)
        self.compressed_size = check_compressed_size(compressed_size, self.embed.grid_size)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.ModuleList(
            LookupViTBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                lookup_mlp_ratio,
                qkv_bias,
                proj_drop_rate,
                drop_path_rate * i / max(depth - 1, 1),
                reuse,
                cross_norm,
                infuse,
                update_lookup=head != "compressed" or i < depth - 1,
                path=path,
                residual_init=residual_init,
            )
            for i in range(depth)
        )
        names = ("compressed", "lookup") if head == "both" else (head,)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(embed_dim, eps=1e-6) for name in names})
        self.heads = nn.ModuleDict({name: PooledHead(embed_dim, num_classes, drop_rate) for name in names})
        self.weight_init = weight_init
        init_linear_layers(self, weight_init)
        init_residual_branches(self, residual_init)

    def embed_images(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images `(B, C, Y, X)` to lookup tokens `(B, N, D)` and their grid (h, w), for any compressed size."""
        x, grid = self.embed(x)
        return self.pos_drop(x), grid

    def forward_tokens(
        self,
        lookup: Tensor,
        grid: tuple[int, ...],
        compressed_size: int | tuple[int, ...] | None = None,
        head: str | None = None,
        intermediates: list[Tokens] | None = None,
    ) -> Tokens:
        """Runs the blocks and the final norms.

        Args:
            lookup: Embedded tokens `(B, N, D)`, from `embed_images`.
            grid: Their grid (h, w).
            compressed_size: Compressed grid of this call; the model's own by default.
            head: The head that will read the result; the model's own by default. With "compressed" the end of the last
                block does not run.
            intermediates: A list to which the tokens and the attention after each block are added, before any final
                norm.

        Returns:
            The normalised tokens that `head` reads.

        Raises:
            ValueError: For a compressed size larger than the grid, or a head that the model does not have.
        """
        size = check_compressed_size(self.compressed_size if compressed_size is None else compressed_size, grid)
        head = self._check_head(head)
        compressed = resize_tokens(lookup, grid, size, self.antialias)
        need_attention = intermediates is not None
        for i, block in enumerate(self.blocks):
            update_lookup = head != "compressed" or i < self.depth - 1
            if self.grad_checkpointing and torch.is_grad_enabled():
                compressed, lookup, attention = checkpoint(
                    block, compressed, lookup, update_lookup, need_attention, use_reentrant=False
                )
            else:
                compressed, lookup, attention = block(compressed, lookup, update_lookup, need_attention)
            if intermediates is not None:
                intermediates.append(Tokens(compressed, lookup, size, grid, attention))
        return Tokens(
            self.norms["compressed"](compressed) if head != "lookup" else None,
            self.norms["lookup"](lookup) if head != "compressed" else None,
            size,
            grid,
        )

    def forward_features(
        self, x: Tensor, compressed_size: int | tuple[int, ...] | None = None, head: str | None = None
    ) -> Tokens:
        """Images `(B, C, Y, X)` to normalised `Tokens`; see `forward_tokens` for the arguments."""
        return self.forward_tokens(*self.embed_images(x), compressed_size, head)

    def forward_intermediates(
        self, x: Tensor, indices: list[int] | None = None, compressed_size: int | tuple[int, ...] | None = None
    ) -> tuple[Tokens, list[Tokens]]:
        """Features, and the tokens after chosen blocks.

        Args:
            x: `(B, C, Y, X)`.
            indices: Indices of the blocks, negative ones from the end; all by default.
            compressed_size: Compressed grid of this call; the model's own by default.

        Returns:
            The normalised tokens; and for each index the `Tokens` after that block, before any final norm, with the
            block's attention `(B, H, M, N)`. It is normalised over M where `reuse` is "renormalize".
        """
        kept: list[Tokens] = []
        tokens = self.forward_tokens(*self.embed_images(x), compressed_size, intermediates=kept)
        return tokens, kept if indices is None else [kept[i] for i in indices]

    def forward_logits(self, tokens: Tokens) -> dict[str, Tensor]:
        """Logits `(B, num_classes)` of each head whose tokens are there, by the head's name."""
        named = {"compressed": tokens.compressed, "lookup": tokens.lookup}
        return {name: head(named[name]) for name, head in self.heads.items() if named[name] is not None}

    def forward_head(self, tokens: Tokens) -> Tensor:
        """Mean of the heads' logits, `(B, num_classes)`."""
        logits = list(self.forward_logits(tokens).values())
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)

    def forward(
        self, x: Tensor, compressed_size: int | tuple[int, ...] | None = None, head: str | None = None
    ) -> Tensor:
        """Images to logits.

        Args:
            x: `(B, C, Y, X)`, any size that the patch divides.
            compressed_size: Compressed grid of this call; the model's own by default.
            head: "both", "compressed" or "lookup" for a model with both heads; the model's own by default.

        Returns:
            Logits `(B, num_classes)`.
        """
        return self.forward_head(self.forward_features(x, compressed_size, head))

    def _check_head(self, head: str | None) -> str:
        if head is None or head == self.head:
            return self.head
        check_choice("head", head, HEADS)
        if self.head != "both":
            raise ValueError(f"this model was built with head={self.head!r} alone and cannot run head={head!r}")
        return head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of each block on or off."""
        self.grad_checkpointing = enable

    def set_path(self, path: str) -> None:
        """Sets the path of every block: "plain", "absorbed", "tiled", or "auto" to let each call choose."""
        path = check_path(path, self.blocks[0].cross.reuse)
        for block in self.blocks:
            block.cross.path = path

    def init_head_bias(self, value: float) -> None:
        """Sets the classifiers' biases, for a sigmoid loss to the log of how often a class is expected."""
        for head in self.heads.values():
            nn.init.constant_(head.fc.bias, value)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {"embed.pos_embed"}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: embedding, blocks, heads."""
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: 0 the embedding, 1 to L the blocks, L + 1 final norms and heads."""
        first, *rest = name.split(".")
        if first == "embed":
            return 0
        return int(rest[0]) + 1 if first == "blocks" else self.depth + 1
