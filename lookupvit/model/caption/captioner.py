"""Images to text: an encoder of the zoo, and a decoder that reads its tokens.

Letters: B images, C channels, (Y, X) pixels, M compressed tokens, N lookup tokens, E their width, T text positions,
V vocabulary.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit.checks import check_choice
from lookupvit.grid import check_compressed_size, sincos_positions
from lookupvit.model.caption.decoder import Decoder
from lookupvit.model.caption.generation import Caption, Generation, Special, generate
from lookupvit.model.layers import HEADS
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.vit import ViT
from lookupvit.model.zoo import create_model, model_arguments

_DECIDED = ("num_classes", "head", "img_size", "compressed_size")
_DECODER = tuple(name for name in inspect.signature(Decoder).parameters if name not in ("vocab_size", "memory_dim"))


class Captioner(nn.Module):
    """An image encoder and a text decoder.

    Args:
        name: Name of the encoder, one of the image models of `lookupvit.list_models()`.
        vocab_size: V. With None only the encoder is built; `build_decoder` adds the decoder.
        img_size: Image size, int or (height, width) in pixels; the named model's own by default.
        compressed_size: Compressed grid; the named model's own by default.
        memory: Tokens that the decoder reads: "compressed", "lookup" or "both". The default is the compressed tokens,
            and for a plain ViT all of its tokens.
        encoder_args: Further arguments of the encoder.
        memory_positions: Whether to add `sincos_positions` to the tokens, which tell the decoder where each token lies
            in the image. A token by itself says little about its place, and without them a decoder learns words such as
            "left of" late.
        decoder_args: Arguments of `Decoder`, such as `{"depth": 6}`; its width is the encoder's by default.

    Raises:
        ValueError: For names, arguments and sizes that do not fit, in one line.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        compressed_size: int | tuple[int, int] | None = None,
        memory: str | None = None,
        encoder_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        memory_positions: bool = True,
    ):
        super().__init__()
        args, known = dict(encoder_args or {}), model_arguments(name)
        if "num_frames" in known:
            raise ValueError(f"{name} is a model of clips, captions are of images: choose a lookupvit_... or a vit_...")
        plain = "compressed_size" not in known
        self.memory = check_choice("memory", memory or ("lookup" if plain else "compressed"), HEADS)
        for key in _DECIDED:
            if key in args:
                raise ValueError(f"the encoder's {key!r} is not for args: the captioner decides it")
        if plain and self.memory != "lookup":
            raise ValueError(f"{name} has no compressed tokens: memory={self.memory!r} needs a LookupViT")
        if not plain:
            # The encoder gets the head that reads the same tokens, so that all of its parameters get a gradient.
            args |= {"head": self.memory, "compressed_size": compressed_size}
        elif compressed_size is not None:
            raise ValueError(f"{name} has no compressed tokens: leave compressed_size out")
        self.encoder: LookupViT | ViT = create_model(name, num_classes=0, img_size=img_size, **args)
        self.memory_positions = memory_positions
        for key in decoder_args or {}:
            if key not in _DECODER:
                raise ValueError(f"the decoder takes no argument {key!r}: known are {', '.join(_DECODER)}")
        self.decoder_args = {"embed_dim": self.encoder.embed_dim, **(decoder_args or {})}
        self.decoder: Decoder | None = None
        if vocab_size is not None:
            self.build_decoder(vocab_size)
        else:  # arguments that do not fit are an error now, not when the vocabulary is known
            with torch.device("meta"):
                Decoder(8, memory_dim=self.encoder.embed_dim, **self.decoder_args)

    def build_decoder(self, vocab_size: int) -> None:
        """Builds the decoder for a vocabulary of `vocab_size` tokens."""
        self.decoder = Decoder(vocab_size, memory_dim=self.encoder.embed_dim, **self.decoder_args)

    @property
    def img_size(self) -> tuple[int, int]:
        """Native image size (height, width)."""
        return self.encoder.img_size

    @property
    def patch_size(self) -> tuple[int, int]:
        """The encoder's patch (height, width)."""
        return self.encoder.patch_size

    @property
    def compressed_size(self) -> tuple[int, ...] | None:
        """Default compressed grid; None of a plain ViT."""
        return self.encoder.compressed_size

    @property
    def context_length(self) -> int:
        """Largest number of tokens of a text, including its first and its last one."""
        return self.decoder_args.get("context_length", inspect.signature(Decoder).parameters["context_length"].default)

    def encode(self, images: Tensor, compressed_size: int | tuple[int, ...] | None = None) -> Tensor:
        """Images `(B, C, Y, X)` to the tokens that the decoder reads: `(B, M, E)`, `(B, N, E)` or `(B, M + N, E)`.

        Raises:
            ValueError: For sizes that do not fit, in one line.
        """
        tokens = self.encoder.forward_features(images, compressed_size)
        grids = {"compressed": tokens.compressed_size, "lookup": tokens.grid_size}
        read = [self._placed(getattr(tokens, kind), grids[kind]) for kind in grids if self.memory in (kind, "both")]
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)  # (B, M, E), (B, N, E) -> (B, M + N, E)

    def _placed(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if not self.memory_positions:
            return tokens
        # Half as large as the normalised tokens, so that they do not outweigh them.
        return tokens + 0.5 * sincos_positions(grid, tokens.shape[-1], tokens.device).to(tokens.dtype)

    def forward(self, images: Tensor, tokens: Tensor, compressed_size: int | tuple[int, ...] | None = None) -> Tensor:
        """Images `(B, C, Y, X)` and text so far `(B, T)` to the logits of each next token, `(B, T, V)`."""
        return self.decoder(tokens, self.encode(images, compressed_size))

    def generate(
        self,
        images: Tensor,
        special: Special,
        how: Generation | None = None,
        compressed_size: int | tuple[int, ...] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[Caption]]:
        """Writes texts about images `(B, C, Y, X)`; see `lookupvit.model.caption.generation.generate`."""
        with torch.no_grad():
            memory = self.encode(images, compressed_size)
        return generate(self.decoder, memory, special, how, generator=generator)

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises a one-line ValueError for a compressed size that the encoder cannot run."""
        if self.compressed_size is None:
            raise ValueError("a plain ViT has no compressed tokens: leave compressed_sizes out")
        check_compressed_size(size, self.encoder.embed.grid_size)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay although they are matrices."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return {f"{key}.{name}" for key, part in parts.items() if part is not None for name in part.no_weight_decay()}

    @property
    def num_layers(self) -> int:
        """Number of layers for layer-wise decay: those of the encoder, and one for the whole decoder."""
        return self.encoder.num_layers + 1

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: the encoder's own, then the decoder."""
        part, _, rest = name.partition(".")
        return self.encoder.layer_id(rest) if part == "encoder" else self.encoder.num_layers
