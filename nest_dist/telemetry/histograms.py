"""Distributions of parameters and gradients, counted on the devices where they lie."""

import typing

import jax
import jax.numpy as jnp
import numpy as np

# Limits of the buckets: both signs of the powers of 2**0.5 from 2**-40 to 2**10, and 0.
_POWERS = np.exp2(np.arange(-80, 21) / 2)
LIMITS = np.concatenate([-_POWERS[::-1], [0.0], _POWERS]).astype(np.float32)


class Histogram(typing.NamedTuple):
    """What TensorBoard knows of many values; a bucket ends at its limit."""

    min: float
    max: float
    num: float
    sum: float
    sum_squares: float
    bucket_limits: list[float]
    bucket_counts: list[float]


def measure(trees: dict[str, typing.Any]) -> dict[str, jax.Array]:
    """One vector for each part of each tree, as `read` takes it.

    Args:
        trees: by name; each a dictionary whose first keys are the parts, such as levels.
    Returns:
        {"tree/part": float32 [buckets + 4]}.
    """
    return {
        f"{name}/{part}": _measured([leaf.astype(jnp.float32) for leaf in jax.tree.leaves(below)])
        for name, tree in trees.items()
        for part, below in tree.items()
    }


def measure_if(wanted: jax.Array, trees: dict[str, typing.Any]) -> dict[str, jax.Array]:
    """`measure` if `wanted`; zeros, which cost nothing, if not."""
    shapes = jax.eval_shape(measure, trees)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.cond(wanted, measure, lambda _: zeros, trees)


def read(vector: np.ndarray) -> Histogram | None:
    """The histogram that `measure` put into a vector; None if it holds zeros only."""
    smallest, largest, total, squares = map(float, vector[:4])
    counts = vector[4:].tolist()
    if not any(counts):
        return None
    limits = [*LIMITS.tolist(), float(np.finfo(np.float32).max)]
    return Histogram(smallest, largest, sum(counts), total, squares, limits, counts)


def _measured(leaves: list[jax.Array]) -> jax.Array:
    # One pass for each limit: reductions need no copy of a sharded leaf, unlike sorting or
    # scattering.
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
