"""Functions whose gradient is written out here are the known ones."""

import functools

import flax.linen as nn
import jax
import pytest
from support import gradients

from nest_dist.model import affine, encoder


def test_tokens_are_normalised_as_by_flax():
    known = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)
    tokens = 3 + 5 * gradients.drawn(2, 4, 9, 16)
    gradients.assert_same(functools.partial(known.apply, {}), affine.normalized, tokens)


def test_equal_tokens_are_normalised_to_zero():
    tokens = gradients.drawn(1, 1, 3, 1) + gradients.drawn(1, 1, 1, 8) * 0
    assert not affine.normalized(tokens).any()


@pytest.mark.parametrize("kind", ["tanh", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_that_of_jax(kind, dtype):
    gradients.assert_same(
        functools.partial(jax.nn.gelu, approximate=kind == "tanh"),
        functools.partial(encoder.gelu, kind=kind),
        3 * gradients.drawn(50, 7, dtype=dtype),
    )
