"""The attention that tokens receive inside their blocks."""

import jax

from nest_dist.model import patching


def received(weights: jax.Array, grid: patching.Grid) -> jax.Array:
    """The attention that each token receives from its block, float32 [B, H, W].

    The mean over heads and queries, times the number of tokens: 1 is what every token would
    receive if all were attended to alike, and 1 is the mean of every block.

    Args:
        weights: of the last layer of a level, [B, T, K, N, N].
    """
    *_, N = weights.shape
    return patching.to_map(weights.mean((2, 3)) * N, grid)
