"""Forms of the model's operations that are faster on a CPU, and slower on a TPU.

`tests/benchmarks/README.md` has figures of both, by `tests/benchmarks/model_speed.py`.
"""

import functools
import math
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nest_dist.sharding import halo, rules

# The operations that XLA gives to its fusion library: its defaults without convolutions, where the
# gradient of a kernel takes three times as long.
_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """The options with which `jax.jit` compiles a model for a CPU."""
    return supported(_OPTIONS)


def supported(options: Mapping[str, str]) -> dict[str, str]:
    """The options if this version of XLA knows them all, else none."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(options)


def instead(
    *operands: Array, cpu: Callable[..., typing.Any], default: Callable[..., typing.Any]
) -> typing.Any:
    """What `cpu` makes of the operands for CPUs, and `default` for all other devices.

    Without a mesh the program is for any device. On a mesh of CPUs only one form is traced, which
    takes half the time.
    """
    context = rules.active()
    if context is not None and context.mesh.devices.flat[0].platform == "cpu":
        return cpu(*operands)
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)


def attend(query: Array, key: Array, value: Array) -> Array:
    """As `attention.attend` without dropout, with queries, keys and values [B, T, N, K, D].

    Products are fastest with heads before tokens and without a dimension of 1.
    """
    _, T, *_ = query.shape
    query, key, value = (
        (x.squeeze(1) if T == 1 else x).swapaxes(-2, -3) for x in (query, key, value)
    )  # [B, T, K, N, D]
    attended = _attend(query, key, value).swapaxes(-2, -3)
    return attended[:, None] if T == 1 else attended


@jax.custom_vjp
def _attend(query: Array, key: Array, value: Array) -> Array:
    """As `attend`, with queries, keys and values [..., N, D]."""
    return _attend_with_residuals(query, key, value)[0]


def _attend_with_residuals(
    query: Array, key: Array, value: Array
) -> tuple[Array, tuple[Array, ...]]:
    scores = _float32("...nd,...md->...nm", query, key)
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(value.dtype)
    # Divided by the sum after the product: N x D numbers instead of N x N.
    total = exponentials.sum(-1, keepdims=True, dtype=jnp.float32)
    attended = _float32("...nm,...md->...nd", exponentials, value) / total
    attended = attended.astype(value.dtype)
    return attended, (query, key, value, exponentials, total, attended)


def _attend_gradients(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, exponentials, total, attended = residuals
    of_totals = (gradient.astype(jnp.float32) * attended).sum(-1, keepdims=True) / total
    gradient = (gradient / total).astype(value.dtype)
    of_exponentials = _float32("...nd,...md->...nm", gradient, value) - of_totals
    of_scores = (exponentials * of_exponentials).astype(query.dtype)
    of_query = jnp.einsum("...nm,...md->...nd", of_scores, key)
    # With tokens last, products that sum over queries are twice as fast.
    of_key = jnp.einsum("...nd,...nm->...dm", query, of_scores).swapaxes(-1, -2)
    of_value = jnp.einsum("...nd,...nm->...dm", gradient, exponentials).swapaxes(-1, -2)
    return of_query, of_key, of_value


_attend.defvjp(_attend_with_residuals, _attend_gradients)


def _float32(indices: str, left: Array, right: Array) -> Array:
    return jnp.einsum(indices, left, right, preferred_element_type=jnp.float32)


def dot_general(tokens: Array, kernel: Array, contracted: int) -> Array:
    """As `linen.dot_general`, over `contracted` dimensions.

    The gradient of a product of two matrices is one, too; with more dimensions XLA copies the
    tokens to get there.
    """
    depth = math.prod(kernel.shape[:contracted])
    product = tokens.reshape(-1, depth) @ kernel.reshape(depth, -1)
    return product.reshape(*tokens.shape[:-contracted], *kernel.shape[contracted:])


def projections(tokens: Array, *kernels: Array) -> tuple[Array, ...]:
    """As `linen.projections`, in one product."""
    C, *_ = kernels[0].shape
    flat = [kernel.reshape(C, -1) for kernel in kernels]
    product = dot_general(tokens, jnp.concatenate(flat, -1), 1)
    ends = np.cumsum([kernel.shape[-1] for kernel in flat])
    return tuple(
        projection.reshape(*tokens.shape[:-1], *kernel.shape[1:])
        for projection, kernel in zip(jnp.split(product, ends[:-1], -1), kernels, strict=True)
    )


def max_pool(image: Array, padding: halo.Padding) -> Array:
    """As `aggregation.max_pool` on one device; equal largest values share the gradient."""
    image = jnp.pad(image, ((0, 0), padding, (0, 1), (0, 0)), constant_values=-np.inf)
    for axis in (1, 2):
        length = image.shape[axis]
        first, second, third = (
            jax.lax.slice_in_dim(image, start, length - 2 + start, 2, axis) for start in range(3)
        )
        image = jnp.maximum(jnp.maximum(first, second), third)
    return image
