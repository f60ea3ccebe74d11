"""The same arithmetic in other words, with which XLA is faster on a CPU, and slower on a TPU.

BUILD.md has figures of both; `tests/benchmarks/model_speed.py` measures the whole on a CPU.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nest_dist.parallel import halo

# What XLA leaves to its library of fused operations: all that it does by default but convolutions,
# for the gradient of whose kernels that takes three times as long as XLA itself.
_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """What `jax.jit` of a model asks of XLA on a CPU, if it knows such an option."""
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _OPTIONS


def mix(query: Array, key: Array, value: Array) -> Array:
    """As `attention.mix` with as many keys as queries, [B, T, N, K, D] all of them.

    Products want heads before tokens and no dimension of 1.
    """
    _, T, *_ = query.shape
    query, key, value = (
        (x.squeeze(1) if T == 1 else x).swapaxes(-2, -3) for x in (query, key, value)
    )  # [B, T, K, N, D]
    mixed = _mix(query, key, value).swapaxes(-2, -3)
    return mixed[:, None] if T == 1 else mixed


@jax.custom_vjp
def _mix(query: Array, key: Array, value: Array) -> Array:
    """Values [..., N, D] mixed by the softmax of the scores of queries and keys [..., N, D]."""
    return _mixed(query, key, value)[0]


def _mixed(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    scores = _float32("...nd,...md->...nm", query, key)
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(value.dtype)
    # A sum divides fewer numbers after the product than before it.
    total = exponentials.sum(-1, keepdims=True, dtype=jnp.float32)
    mixed = _float32("...nm,...md->...nd", exponentials, value) / total
    mixed = mixed.astype(value.dtype)
    return mixed, (query, key, value, exponentials, total, mixed)


def _mix_gradients(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, exponentials, total, mixed = kept
    of_totals = (gradient.astype(jnp.float32) * mixed).sum(-1, keepdims=True) / total
    gradient = (gradient / total).astype(value.dtype)
    of_exponentials = _float32("...nd,...md->...nm", gradient, value) - of_totals
    of_scores = (exponentials * of_exponentials).astype(query.dtype)
    of_query = jnp.einsum("...nm,...md->...nd", of_scores, key)
    # With tokens last, products that sum over queries are twice as fast.
    of_key = jnp.einsum("...nd,...nm->...dm", query, of_scores).swapaxes(-1, -2)
    of_value = jnp.einsum("...nd,...nm->...dm", gradient, exponentials).swapaxes(-1, -2)
    return of_query, of_key, of_value


_mix.defvjp(_mixed, _mix_gradients)


def _float32(indices: str, left: Array, right: Array) -> Array:
    return jnp.einsum(indices, left, right, preferred_element_type=jnp.float32)


def contract(tokens: Array, kernel: Array, count: int) -> Array:
    """As `affine.contract`.

    As a product of two matrices it has a gradient that is one as well; with more dimensions XLA
    copies the tokens to bring them into that form.
    """
    depth = math.prod(kernel.shape[:count])
    product = tokens.reshape(-1, depth) @ kernel.reshape(depth, -1)
    return product.reshape(*tokens.shape[:-count], *kernel.shape[count:])


def contract_each(tokens: Array, *kernels: Array) -> tuple[Array, ...]:
    """As `affine.contract_each`, in one product."""
    depth, *_ = kernels[0].shape
    flat = [kernel.reshape(depth, -1) for kernel in kernels]
    product = contract(tokens, jnp.concatenate(flat, -1), 1)
    parts = jnp.split(product, np.cumsum([each.shape[-1] for each in flat])[:-1], -1)
    return tuple(
        part.reshape(*tokens.shape[:-1], *kernel.shape[1:])
        for part, kernel in zip(parts, kernels, strict=True)
    )


def max_pool(image: Array, padding: halo.Padding) -> Array:
    """As `aggregation.max_pool`; where several are the largest, they share the gradient."""
    image = jnp.pad(image, ((0, 0), padding, (0, 1), (0, 0)), constant_values=-np.inf)
    for axis in (1, 2):
        longest = image.shape[axis]
        first, second, third = (
            jax.lax.slice_in_dim(image, start, longest - 2 + start, 2, axis) for start in range(3)
        )
        image = jnp.maximum(jnp.maximum(first, second), third)
    return image
