"""Distributions of parameters and gradients, counted on the devices that hold them."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import tree_paths

Trees = Mapping[str, Mapping[str, tree_paths.Tree]]

# Limits of the buckets: both signs of the powers of 2**0.5 from 2**-40 to 2**10, and 0.
_POWERS = np.exp2(np.arange(-80, 21) / 2)
LIMITS = np.concatenate([-_POWERS[::-1], [0.0], _POWERS]).astype(np.float32)


def measure(trees: Trees) -> dict[str, jax.Array]:
    """One vector for each module of each tree, as `read` takes it.

    Args:
        trees: by name; the keys of each are its modules, such as levels.
    Returns:
        {"tree/module": float32 [buckets + 4]}.
    """
    return {
        f"{name}/{module}": _measured([leaf.astype(jnp.float32) for leaf in jax.tree.leaves(below)])
        for name, tree in trees.items()
        for module, below in tree.items()
    }


def measure_every(every: int, step: jax.Array, trees: Trees) -> dict[str, jax.Array]:
    """`measure` where `every` divides `step`, else zeros: then the reductions do not run."""
    shapes = jax.eval_shape(measure, trees)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.cond(step % every == 0, measure, lambda _: zeros, trees)


def read(vector: np.ndarray) -> dict[str, typing.Any] | None:
    """The histogram in a vector of `measure` as TensorBoard takes it; None for zeros only."""
    smallest, largest, total, squares = map(float, vector[:4])
    counts = vector[4:].tolist()
    if not any(counts):
        return None
    return {
        "min": smallest,
        "max": largest,
        "num": sum(counts),
        "sum": total,
        "sum_squares": squares,
        # A bucket ends at its limit.
        "bucket_limits": [*LIMITS.tolist(), float(np.finfo(np.float32).max)],
        "bucket_counts": counts,
    }


def _measured(leaves: list[jax.Array]) -> jax.Array:
    # One reduction for each limit. Unlike sorting or scattering, it copies no sharded leaf.
    def not_above(limit: jax.Array) -> jax.Array:
        return sum(jnp.sum(leaf <= limit, dtype=jnp.float32) for leaf in leaves)

    below = jax.lax.map(not_above, jnp.asarray(LIMITS))
    size = float(sum(leaf.size for leaf in leaves))
    edges = jnp.concatenate([jnp.zeros(1), below, jnp.full(1, size)])
    numbers = [
        jnp.min(jnp.stack([leaf.min() for leaf in leaves])),
        jnp.max(jnp.stack([leaf.max() for leaf in leaves])),
        sum(leaf.sum() for leaf in leaves),
        sum(jnp.sum(leaf**2) for leaf in leaves),
    ]
    return jnp.concatenate([jnp.stack(numbers), jnp.diff(edges)])
