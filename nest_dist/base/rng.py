"""Random numbers for the examples of a batch, keyed by their rows in the global batch.

So they depend neither on the device nor on the microbatch of an example.
"""

import jax
import jax.numpy as jnp


def keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each example [B], from the key of a step and its row in the global batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """Other keys [B], for the purpose of this number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def uniform(keys: jax.Array, shape: tuple[int, ...] = (), low: float = 0.0) -> jax.Array:
    """Uniform draws from [low, 1): float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=low))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal draws: float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def dropout(x: jax.Array, rate: float | jax.Array, keys: jax.Array) -> jax.Array:
    """Zeroes elements of `x` [B, ...] with probability `rate`; divides the others by 1 - `rate`."""
    return _drop(x, rate, keys, x.shape[1:])


def drop_path(x: jax.Array, rate: float | jax.Array, keys: jax.Array) -> jax.Array:
    """As `dropout`, but with one draw for all elements of an example."""
    return _drop(x, rate, keys, (1,) * (x.ndim - 1))


def _drop(
    x: jax.Array, rate: float | jax.Array, keys: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    stays = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(stays, x / (1 - rate), 0).astype(x.dtype)
