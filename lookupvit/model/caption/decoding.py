"""A decoder that runs token by token: with a cache of keys and values, or over the whole text each time.

Letters as in `lookupvit.model.caption.decoder`: B images, K texts of each, R = B K, D embed_dim, V vocabulary; t
positions so far.
"""

import torch
from torch import Tensor

from lookupvit.model.caption.decoder import Decoder


class CachedText:
    """Texts that grow by one token per call; keys and values are computed once for each position.

    Keys and values are never moved: a table says where those of each text's positions lie. When beams change places or
    images are done, only the table changes. The memory's keys and values are stored once per image, whatever K is.

    Args:
        decoder: The decoder, in evaluation mode.
        memory: `(B, M, E)`.
        most: Largest K.
        length: Largest number of tokens of a text.
    """

    def __init__(self, decoder: Decoder, memory: Tensor, most: int, length: int):
        self.decoder, self.length = decoder, length
        self.memory = decoder.project(memory)
        self.slots = len(memory) * most
        self.stores: list[Tensor] = []  # of each block (length * slots, 2 D)
        self.places = torch.zeros(len(memory), 0, dtype=torch.int64, device=memory.device)  # (R, t), rows of a store
        self.straight = True  # text r has always been in slot r

    def step(self, tokens: Tensor) -> Tensor:
        """The newest token of each text `(B, K)` to the logits of the next one `(B, K, V)`."""
        t, R = self.places.shape[1], tokens.numel()
        newest = t * self.slots + torch.arange(R, device=tokens.device)
        self.places = torch.cat([self.places, newest[:, None]], dim=1)
        hidden = self.decoder.hidden(tokens.reshape(R, 1), self.memory, t, self._remember)  # (B, K) -> (R, 1, D)
        return self.decoder.logits(hidden).view(*tokens.shape, -1)

    def _remember(self, block: int, kv: Tensor) -> Tensor:
        """Stores the newest keys and values `(R, 2 D)` of a block; returns those of all positions `(R, t, 2 D)`."""
        (R, t), D2 = self.places.shape, kv.shape[1]
        if t == 1:
            self.stores.append(kv.new_empty(self.length * self.slots, D2))
        store = self.stores[block]
        first = (t - 1) * self.slots
        store[first : first + R] = kv
        if self.straight:
            return store.view(self.length, self.slots, D2)[:t, :R].transpose(0, 1)  # (t, R, 2 D) -> (R, t, 2 D)
        return store.index_select(0, self.places.flatten()).view(R, t, D2)

    def move(self, texts: Tensor) -> None:
        """Lets text k of an image go on from its text `texts[:, k]`; `(B, K')`, K' may differ from K."""
        B, K = len(texts), len(self.places) // len(texts)
        rows = texts + K * torch.arange(B, device=texts.device)[:, None]  # (B, K')
        self.straight = self.straight and K == texts.shape[1] == 1
        self.places = self.places[rows.flatten()]

    def keep(self, images: Tensor) -> None:
        """Goes on with these images `(b,)` alone, given by number."""
        B = self.memory[0][0].shape[0]
        self.places = self.places.unflatten(0, (B, -1))[images].flatten(0, 1)  # (B K, t) -> (b K, t)
        self.memory = [(k[images], v[images]) for k, v in self.memory]
        self.straight = False


class WholeText:
    """The same without a cache: each call runs the decoder over the whole text. For comparison."""

    def __init__(self, decoder: Decoder, memory: Tensor, most: int, length: int):
        self.decoder, self.memory = decoder, memory
        self.texts = torch.zeros(len(memory), 1, 0, dtype=torch.int64, device=memory.device)  # (B, K, t)

    def step(self, tokens: Tensor) -> Tensor:
        """See `CachedText.step`."""
        self.texts = torch.cat([self.texts, tokens[..., None]], dim=2)
        hidden = self.decoder.hidden(self.texts.flatten(0, 1), self.memory)[:, -1]  # (B K, t) -> (B K, D)
        return self.decoder.logits(hidden).view(*tokens.shape, -1)

    def move(self, texts: Tensor) -> None:
        """See `CachedText.move`."""
        self.texts = self.texts.gather(1, texts[..., None].expand(-1, -1, self.texts.shape[2]))

    def keep(self, images: Tensor) -> None:
        """See `CachedText.keep`."""
        self.texts, self.memory = self.texts[images], self.memory[images]
