"""A causal transformer that writes text about an image's tokens.

Letters: B images, K texts of each image (beams, samples), R = B K texts, T text positions, M memory tokens (what the
encoder hands over), E their width, D embed_dim, H heads, d = D / H, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookupvit.checks import check_choice, check_heads, check_positive
from lookupvit.model.init import init_residual_branches
from lookupvit.model.layers import Mlp, layer_scale

KeysValues = tuple[Tensor, Tensor]  # of the memory in one layer, each (B, H, M, d)


class TextAttention(nn.Module):
    """Causal self-attention among the positions of a text.

    Args:
        dim: D.
        num_heads: H.
        drop: Dropout after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, remember: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Attends.

        Args:
            x: `(R, T, D)`; with `remember` only the newest position, `(R, 1, D)`.
            remember: Takes the newest keys and values `(R, 2 D)`, gives back those of all positions `(R, t, 2 D)`.

        Returns:
            `(R, T, D)`.
        """
        q, kv = self.qkv(self.norm(x)).split((x.shape[-1], 2 * x.shape[-1]), dim=-1)
        if remember is not None:
            kv = remember(kv[:, 0])
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (R, T, D) -> (R, H, T, d)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (R, t, 2 D) -> 2 x (R, H, t, d)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=remember is None)
        return self.drop(self.proj(out.transpose(1, 2).flatten(2)))  # (R, H, T, d) -> (R, T, D)


class MemoryAttention(nn.Module):
    """Cross-attention from text to an image's tokens; all texts of one image read the same keys and values.

    Args:
        dim: D.
        num_heads: H.
        memory_dim: E.
        drop: Dropout after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, memory_dim: int, drop: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(memory_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def project(self, memory: Tensor) -> KeysValues:
        """Memory `(B, M, E)` to keys and values, each `(B, H, M, d)`."""
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, M, 2 D) -> 2 x
        return k, v

    def forward(self, x: Tensor, memory: KeysValues, attention: list[Tensor] | None = None) -> Tensor:
        """Attends.

        Args:
            x: `(R, T, D)`, the K texts of an image one after the other.
            memory: From `project`.
            attention: A list that receives the attention `(R, H, T, M)`.

        Returns:
            `(R, T, D)`.
        """
        (k, v), (R, T, D) = memory, x.shape
        B = k.shape[0]
        # This attention is not causal, so the K texts of an image are one longer text. (R, T, D) -> (B, H, K T, d)
        q = self.q(self.norm(x)).view(B, R // B * T, self.num_heads, -1).transpose(1, 2)
        if attention is not None:
            weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, K T, M)
            attention.append(weights.unflatten(2, (-1, T)).transpose(1, 2).flatten(0, 1))  # -> (R, H, T, M)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.drop(self.proj(out.transpose(1, 2).reshape(R, T, D)))  # (B, H, K T, d) -> (R, T, D)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each on normalised input and added to the residual stream."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        memory_dim: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        residual_init: str | float = "default",
    ):
        super().__init__()
        self.text = TextAttention(dim, num_heads, drop)
        self.image = MemoryAttention(dim, num_heads, memory_dim, drop)
        self.mlp = Mlp(dim, round(dim * mlp_ratio), drop)
        self.ls_text, self.ls_image, self.ls2 = (layer_scale(dim, residual_init) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        memory: KeysValues,
        remember: Callable[[Tensor], Tensor] | None = None,
        attention: list[Tensor] | None = None,
    ) -> Tensor:
        """`(R, T, D)` to `(R, T, D)`; see `TextAttention` and `MemoryAttention`."""
        x = x + self.ls_text(self.text(x, remember))
        x = x + self.ls_image(self.image(x, memory, attention))
        return x + self.ls2(self.mlp(x))


class Decoder(nn.Module):
    """Text tokens and an image's tokens to the logits of the next text token.

    Args:
        vocab_size: V.
        embed_dim: D.
        memory_dim: E; D by default.
        depth: Number of blocks.
        num_heads: H.
        mlp_ratio: Hidden width of the MLP over D.
        context_length: Largest number of tokens of a text, including its first and its last one.
        tied: Whether the logits use the matrix of the embedding instead of a matrix of their own.
        drop_rate: Dropout after the embedding and after each residual branch.
        residual_init: How residual branches begin: "default" (smaller in a deeper model, as in GPT-2), "zero", or a
            number, with which LayerScale begins; see `init_residual_branches`.
        weight_init: How the weights of linear layers begin: "normal", with a standard deviation of 0.02 as in GPT-2, or
            "xavier_uniform", which suits a narrow decoder: at width 96 it is five times as large, and attention to the
            image is learnt sooner.

    Raises:
        ValueError: For sizes that do not fit, in one line.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 768,
        memory_dim: int | None = None,
        depth: int = 6,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        context_length: int = 64,
        tied: bool = True,
        drop_rate: float = 0.0,
        residual_init: str | float = "default",
        weight_init: str = "normal",
    ):
        super().__init__()
        self.weight_init = check_choice("weight_init", weight_init, ("normal", "xavier_uniform"))
        check_heads(embed_dim, num_heads)
        check_positive(vocab_size=vocab_size, depth=depth, context_length=context_length)
        if context_length < 3:
            raise ValueError(
                f"context_length={context_length} has no room for a word: give 3 (begin, word, end) or more"
            )
        self.vocab_size, self.embed_dim, self.context_length = vocab_size, embed_dim, context_length
        self.memory_dim = embed_dim if memory_dim is None else memory_dim
        self.embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(context_length, embed_dim))
        self.drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            DecoderBlock(embed_dim, num_heads, self.memory_dim, mlp_ratio, drop_rate, residual_init)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = None if tied else nn.Linear(embed_dim, vocab_size, bias=False)
        self._init_weights()
        init_residual_branches(self, residual_init)

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and self.weight_init == "xavier_uniform" and "embed" not in name:
                nn.init.xavier_uniform_(parameter)
            elif parameter.ndim > 1:
                # Layers that add to the residual stream start smaller in a deeper model, as in GPT-2: 3 per block.
                residual = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / (3 * len(self.blocks)) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def project(self, memory: Tensor) -> list[KeysValues]:
        """Memory `(B, M, E)` to the keys and values of each block, which serve a whole text."""
        return [block.image.project(memory) for block in self.blocks]

    def hidden(
        self,
        tokens: Tensor,
        memory: Tensor | list[KeysValues],
        start: int = 0,
        remember: Callable[[int, Tensor], Tensor] | None = None,
        attention: list[Tensor] | None = None,
    ) -> Tensor:
        """The last block's normalised output.

        Args:
            tokens: `(R, T)`. Padding may follow a text but not precede it.
            memory: `(B, M, E)`, or the result of `project`. R is a multiple of B; the texts of an image are adjacent.
            start: Position of the first of the tokens.
            remember: Takes a block's number and its newest keys and values, see `TextAttention`.
            attention: A list that receives each block's cross-attention `(R, H, T, M)`.

        Returns:
            `(R, T, D)`.

        Raises:
            ValueError: If the text is longer than the context, or R is no multiple of B.
        """
        R, T = tokens.shape
        if start + T > self.context_length:
            raise ValueError(f"a text of {start + T} tokens does not fit the context of {self.context_length}: cut it")
        if isinstance(memory, Tensor):
            memory = self.project(memory)
        if R % memory[0][0].shape[0]:
            raise ValueError(
                f"{R} texts do not belong to {memory[0][0].shape[0]} images: give as many texts for each image"
            )
        x = self.drop(self.embed(tokens) + self.pos_embed[start : start + T])
        for i, block in enumerate(self.blocks):
            own = None if remember is None else (lambda kv, i=i: remember(i, kv))
            x = block(x, memory[i], own, attention)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """`(..., D)` to `(..., V)`."""
        return F.linear(hidden, self.embed.weight if self.head is None else self.head.weight)

    def forward(self, tokens: Tensor, memory: Tensor | list[KeysValues]) -> Tensor:
        """Tokens `(R, T)` and memory `(B, M, E)` to the logits of each next token, `(R, T, V)`."""
        return self.logits(self.hidden(tokens, memory))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        return {"pos_embed"}
