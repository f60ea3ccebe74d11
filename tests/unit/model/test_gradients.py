"""Functions whose gradient is written out here are the known ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from support import gradients

from nest_dist.model import affine, encoder


def test_tokens_are_normalised_as_by_flax():
    known = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)
    tokens = 3 + 5 * gradients.drawn(2, 4, 9, 16)
    gradients.assert_same(functools.partial(known.apply, {}), affine.normalized, tokens)


def test_equal_tokens_are_no_division_by_zero():
    # Of large numbers the mean square less the squared mean may come out below zero.
    tokens = 1e4 * gradients.drawn(200, 1) + gradients.drawn(1, 7) * 0
    variance = jnp.square(tokens).mean(-1) - jnp.square(tokens.mean(-1))
    assert (variance < -1e-6).any()
    value, pull_back = jax.vjp(affine.normalized, tokens)
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(*pull_back(value)).all()


@pytest.mark.parametrize("kind", ["tanh", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_that_of_jax(kind, dtype):
    gradients.assert_same(
        functools.partial(jax.nn.gelu, approximate=kind == "tanh"),
        functools.partial(encoder.gelu, kind=kind),
        3 * gradients.drawn(50, 7, dtype=dtype),
    )
