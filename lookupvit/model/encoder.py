"""A LookupViT as the encoder of another project: compressed tokens, or the tokens after chosen blocks.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, (h, w) token grid.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lookupvit.checks import check_choice
from lookupvit.grid import Tokens

TOKENS = ("compressed", "lookup")


class EncoderMixin:
    """`encode` and `get_intermediate_layers` of a `LookupViT`."""

    # A subclass may have methods of these names with another library's results.
    def _tokens(self, *args: Any, **kwargs: Any) -> Tokens:
        return self.forward_features(*args, **kwargs)

    def _states(self, *args: Any, **kwargs: Any) -> tuple[Tokens, list[Tokens]]:
        return self.forward_intermediates(*args, **kwargs)

    def encode(self, x: Tensor, compressed_size: int | tuple[int, ...] | None = None) -> Tensor:
        """Images to normalised compressed tokens, for a decoder or a language model.

        Args:
            x: `(B, C, Y, X)`, normalised; clips `(B, C, T, Y, X)` for a video model.
            compressed_size: Compressed grid of this call, and with it the number of tokens; the model's own by default.

        Returns:
            `(B, M, D)`, row by row of the compressed grid.

        Raises:
            ValueError: For a model with head="lookup", which has no norm for its compressed tokens.
        """
        return self._tokens(x, compressed_size, head="compressed").compressed

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        tokens: str = "lookup",
        reshape: bool = False,
        norm: bool = False,
        compressed_size: int | tuple[int, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        """Tokens after chosen blocks, with the arguments of timm's and DINO's ViT.

        Args:
            x: `(B, C, Y, X)`, normalised.
            n: The last n blocks, or their indices, negative ones from the end.
            tokens: "lookup" for dense tasks, "compressed" for a summary of the image.
            reshape: Whether to return maps `(B, D, h, w)` instead of tokens.
            norm: Whether to apply the final norm.
            compressed_size: Compressed grid of this call; the model's own by default.

        Returns:
            For each block the tokens `(B, N, D)` or `(B, M, D)`, or the maps.

        Raises:
            ValueError: For tokens, blocks or a norm that the model does not have.
        """
        check_choice("tokens", tokens, TOKENS)
        if norm and tokens not in self.norms:
            raise ValueError(
                f"norm=True needs a model that classifies its {tokens} tokens: this one has head={self.head!r}"
            )
        indices = list(range(self.depth))[-n:] if isinstance(n, int) else list(n)
        if not indices or not all(-self.depth <= i < self.depth for i in indices):
            raise ValueError(f"n={n!r} names no blocks of {self.depth}: give 1 to {self.depth}, or indices of blocks")
        _, kept = self._states(x, indices, compressed_size)
        chosen = []
        for state in kept:
            value, grid = getattr(state, tokens), state.grid_size if tokens == "lookup" else state.compressed_size
            value = self.norms[tokens](value) if norm else value
            chosen.append(value.transpose(1, 2).unflatten(2, grid) if reshape else value)  # (B, N, D) -> (B, D, h, w)
        return tuple(chosen)
