"""Whether two functions are the same, their gradients included."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_same(first, second, *arguments, tolerance=2e-6):
    """Both give the same from the arguments, and the same gradients for all of them."""
    wanted, of_wanted = jax.vjp(first, *arguments)
    found, of_found = jax.vjp(second, *arguments)
    assert found.dtype == wanted.dtype
    gradient = drawn(*wanted.shape, seed=9, dtype=wanted.dtype)
    everything = (found, *of_found(gradient)), (wanted, *of_wanted(gradient))
    for one, other in zip(*everything, strict=True):
        one, other = (np.asarray(each, np.float64) for each in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max(), rtol=0)
