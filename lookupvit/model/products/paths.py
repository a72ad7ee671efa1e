"""Chooses the order of the cross-attention's products: the function stays the same, the cost differs.

Letters: N lookup tokens, M compressed tokens, D embed_dim, H heads, A attention (B, H, M, N).
"""

from typing import NamedTuple

from lookupvit.checks import TRANSPOSED

# Entries of A per sample (H M N) above which a training step computes A again instead of storing it: 16 MB in float32.
# Below that, storing is faster and there is little memory to save.
TILED_FROM = 4_000_000


class Paths(NamedTuple):
    """Which of the three products of the cross-attention run absorbed, and whether A is stored at all."""

    scores: bool
    values: bool
    infusion: bool
    tiled: bool = False


def choose_paths(
    n: int,
    m: int,
    dim: int,
    num_heads: int,
    path: str = "auto",
    cross_norm: str = "input",
    reuse: str = "transpose",
    training: bool = False,
) -> Paths:
    """Picks the path of each product from its multiply-adds, and whether A is stored from its size.

    Args:
        n: Lookup tokens N.
        m: Compressed tokens M.
        dim: D.
        num_heads: H.
        path: "plain", "absorbed", "tiled" (plain products, without storing A), or "auto" for the one with the fewest
            multiply-adds.
        cross_norm: With "projection" a LayerNorm stands between K's projection and the scores, which then stay plain.
        reuse: With "renormalize" and "fresh" A is needed as a whole, and "auto" never chooses "tiled".
        training: Whether a backward pass will follow.

    Returns:
        The path of each product.
    """
    if path != "auto":
        return Paths(
            path == "absorbed" and cross_norm == "input", path == "absorbed", path == "absorbed", path == "tiled"
        )
    plain = n * dim * dim + m * n * dim
    absorbed = m * dim * dim + num_heads * m * n * dim
    # A matrix product of H M rows of width d is a little less efficient than one of width D: ask for a clear margin.
    pays = absorbed < 0.9 * plain
    tiled = training and not pays and reuse in TRANSPOSED and num_heads * m * n > TILED_FROM
    return Paths(pays and cross_norm == "input", pays, pays, tiled)
