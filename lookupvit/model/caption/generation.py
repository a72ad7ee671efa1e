"""Text out of a decoder: greedy, beam search, and sampling from the nucleus, many images at a time.

Letters: B images, M memory tokens, E their width.

A finished image waits for the others and does not change any more, so that the text of an image does not depend on the
rest of its batch.
"""

import torch
from torch import Tensor

from lookupvit.model.caption.decoder import Decoder
from lookupvit.model.caption.decoding import CachedText, WholeText
from lookupvit.model.caption.options import METHODS, Caption, Generation, Special
from lookupvit.model.caption.search import Beams, Search, Walk

__all__ = ["METHODS", "Caption", "Generation", "Special", "generate"]


@torch.no_grad()
def generate(
    decoder: Decoder,
    memory: Tensor,
    special: Special,
    how: Generation | None = None,
    cached: bool = True,
    generator: torch.Generator | None = None,
) -> list[list[Caption]]:
    """Writes texts about images.

    Args:
        decoder: In evaluation mode.
        memory: `(B, M, E)`.
        special: Tokens with a meaning.
        how: Method and its options; beam search by default.
        cached: Whether to keep keys and values. Without them the texts are the same, but take many times longer.
        generator: Random generator for sampling, on the memory's device; torch's global one by default.

    Returns:
        For each image `num_return` texts, best first; fewer only if fewer texts are possible.

    Raises:
        ValueError: If the lengths asked for do not fit the decoder's context.
    """
    how = Generation() if how is None else how
    limit = how.limit(decoder.context_length)
    if not len(memory):
        return []
    most = {"greedy": 1, "beam": how.beams, "sample": how.num_return}[how.method]
    text = (CachedText if cached else WholeText)(decoder, memory, most, limit + 1)
    if how.method == "beam":
        search: Search = Beams(text, special, how, limit)
    else:
        search = Walk(text, special, how, limit, generator=generator)
    return search.captions(search.run(len(memory), memory.device))
