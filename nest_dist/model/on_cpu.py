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

    Products want heads before tokens and no dimension of 1, and a sum divides fewer numbers after
    the product than before it.
    """
    _, T, *_ = query.shape
    query, key, value = (
        (x.squeeze(1) if T == 1 else x).swapaxes(-2, -3) for x in (query, key, value)
    )  # [B, T, K, N, D]
    scores = jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=jnp.float32)
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "...nm,...md->...nd",
        exponentials.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    mixed = (mixed / exponentials.sum(-1, keepdims=True)).astype(value.dtype).swapaxes(-2, -3)
    return mixed[:, None] if T == 1 else mixed


def contract(tokens: Array, kernel: Array, count: int) -> Array:
    """As `affine.contract`.

    As a product of two matrices it has a gradient that is one as well; with more dimensions XLA
    copies the tokens to bring them into that form.
    """
    depth = math.prod(kernel.shape[:count])
    product = tokens.reshape(-1, depth) @ kernel.reshape(depth, -1)
    return product.reshape(*tokens.shape[:-count], *kernel.shape[count:])


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
