"""The words for a CPU and those for all other platforms mean the same, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import gradients

from nest_dist.model import attention, on_cpu


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 4e-2)])
def test_attention_is_mixed_alike(T, dtype, tolerance):
    arguments = (gradients.drawn(2, T, 9, 3, 4, seed=seed, dtype=dtype) for seed in range(3))
    gradients.assert_same(attention.mix, on_cpu.mix, *arguments, tolerance=tolerance)


def test_scores_may_be_large():
    query, key, value = (gradients.drawn(1, 1, 5, 2, 4, seed=seed) for seed in range(3))
    found = on_cpu.mix(1e4 * query, key, value)
    np.testing.assert_allclose(found, attention.mix(1e4 * query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "padding"), [(6, (0, 1)), (7, (0, 0))])
def test_pools_are_alike(rows, padding):
    def windows(image):
        edges = ((0, 0), padding, (0, 1), (0, 0))
        lowest = np.array(-np.inf, image.dtype)
        return jax.lax.reduce_window(image, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)

    gradients.assert_same(
        windows, functools.partial(on_cpu.max_pool, padding=padding), gradients.drawn(2, rows, 8, 3)
    )


def test_contractions_with_several_kernels_are_alike():
    kernels = [gradients.drawn(5, *new, seed=1) for new in ((3, 2), (1, 2), (7,))]
    arguments = gradients.drawn(2, 3, 4, 5), *kernels

    def side_by_side(contract_each, tokens, *kernels):
        products = contract_each(tokens, *kernels)
        return jnp.concatenate([each.reshape(2, 3, 4, -1) for each in products], -1)

    def one_by_one(tokens, *kernels):
        return [jnp.tensordot(tokens, each, 1) for each in kernels]

    gradients.assert_same(
        functools.partial(side_by_side, one_by_one),
        functools.partial(side_by_side, on_cpu.contract_each),
        *arguments,
    )


@pytest.mark.parametrize("count", [1, 2])
def test_contractions_are_alike(count):
    tokens, kernel = (
        gradients.drawn(2, 3, 4, 5),
        gradients.drawn(*(4, 5)[2 - count :], 3, 2, seed=1),
    )
    gradients.assert_same(
        functools.partial(jnp.tensordot, axes=count),
        functools.partial(on_cpu.contract, count=count),
        *(tokens, kernel),
    )


def test_the_gradient_of_a_kernel_copies_no_tokens():
    def copies(contract):
        def loss(kernel, tokens):
            return (contract(tokens, kernel, 1) ** 2).sum()

        program = (
            jax.jit(jax.grad(loss))
            .lower(gradients.drawn(8, 3, 2), gradients.drawn(2, 4, 6, 8))
            .compile()
        )
        return program.as_text().count(" copy(")

    assert copies(on_cpu.contract) == 0 < copies(jnp.tensordot)


def test_compiler_options_are_used_where_they_are_known(monkeypatch):
    on_cpu.compiler_options.cache_clear()
    assert on_cpu.compiler_options()
    monkeypatch.setattr(on_cpu, "_OPTIONS", {"xla_cpu_never_heard_of": "true"})
    on_cpu.compiler_options.cache_clear()
    assert on_cpu.compiler_options() == {}
    on_cpu.compiler_options.cache_clear()
