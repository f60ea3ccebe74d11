"""The forms for a CPU compute the same as the plain ones, gradients included."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from support import gradients

from nest_dist.model import attention, on_cpu


@pytest.mark.medium
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 4e-2)])
def test_tokens_attend_alike(T, dtype, tolerance):
    arguments = (gradients.drawn(2, T, 9, 3, 4, seed=seed, dtype=dtype) for seed in range(3))
    gradients.assert_same(attention.attend, on_cpu.attend, *arguments, tolerance=tolerance)


def test_scores_may_be_large():
    query, key, value = (gradients.drawn(1, 1, 5, 2, 4, seed=seed) for seed in range(3))
    np.testing.assert_allclose(
        on_cpu.attend(1e4 * query, key, value),
        attention.attend(1e4 * query, key, value),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("rows", "padding"), [(6, (0, 1)), (7, (0, 0))])
def test_pools_are_alike(rows, padding):
    gradients.assert_same(
        lambda image: nn.max_pool(image, (3, 3), (2, 2), (padding, (0, 1))),
        functools.partial(on_cpu.max_pool, padding=padding),
        gradients.drawn(2, rows, 8, 3),
    )


def test_projections_by_several_kernels_are_alike():
    kernels = [gradients.drawn(5, *heads, seed=1) for heads in ((3, 2), (1, 2), (7,))]

    def concatenated(projections, tokens, *kernels):
        products = projections(tokens, *kernels)
        return jnp.concatenate([product.reshape(2, 3, 4, -1) for product in products], -1)

    def plain(tokens, *kernels):
        return [jnp.tensordot(tokens, kernel, 1) for kernel in kernels]

    gradients.assert_same(
        functools.partial(concatenated, plain),
        functools.partial(concatenated, on_cpu.projections),
        *(gradients.drawn(2, 3, 4, 5), *kernels),
    )


@pytest.mark.parametrize("contracted", [1, 2])
def test_products_are_alike(contracted):
    tokens = gradients.drawn(2, 3, 4, 5)
    kernel = gradients.drawn(*(4, 5)[2 - contracted :], 3, 2, seed=1)
    gradients.assert_same(
        functools.partial(jnp.tensordot, axes=contracted),
        functools.partial(on_cpu.dot_general, contracted=contracted),
        *(tokens, kernel),
    )


def test_a_compiler_without_one_of_the_options_is_asked_for_none():
    assert on_cpu.compiler_options() == on_cpu.supported(on_cpu.compiler_options()) != {}
    assert on_cpu.supported({"xla_cpu_never_heard_of": "true"}) == {}
