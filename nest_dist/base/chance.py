"""Random numbers of a batch: each example's are keyed by its number in the global batch alone.

So they depend neither on the devices nor on the microbatch that an example lies in.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each example [B].

    Args:
        key: of the step and the purpose.
        rows: int32 [B], the number of each example in the global batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """Other keys [B], for the purpose of this number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def uniform(keys: jax.Array, shape: tuple[int, ...] = (), low: float = 0.0) -> jax.Array:
    """Even draws from [low, 1): float32 [B, *shape]."""
    return _each(keys, lambda key: jax.random.uniform(key, shape, minval=low))


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal draws: float32 [B, *shape]."""
    return _each(keys, lambda key: jax.random.normal(key, shape))


def drop(x: jax.Array, rate: float | jax.Array, keys: jax.Array, whole: bool = False) -> jax.Array:
    """Zeroes parts of `x` with chance `rate`, and scales up those that stay.

    Args:
        x: [B, ...].
        rate: in [0, 1).
        keys: [B].
        whole: all of an example stays or goes.
    """
    shape = (1,) * (x.ndim - 1) if whole else x.shape[1:]
    stays = _each(keys, lambda key: jax.random.bernoulli(key, 1 - rate, shape))
    return jnp.where(stays, x / (1 - rate), 0).astype(x.dtype)


def _each(keys: jax.Array, draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jax.vmap(draw)(keys)
