"""The same arithmetic in other words, with which XLA is several times as fast on a CPU.

On a TPU it is slower with them. `tests/benchmarks/model_speed.py` measures the whole on a CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nest_dist.parallel import halo


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(image: Array, kernel: Array, padding: halo.Padding) -> Array:
    """3x3 convolution as of `aggregation.convolve`, with a gradient of its own for the kernel."""
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), (padding, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(
    image: Array, kernel: Array, padding: halo.Padding
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(image, kernel, padding), (image, kernel)


def _backward(
    padding: halo.Padding, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    image, kernel = kept
    (of_image,) = jax.linear_transpose(lambda it: convolve.fun(it, kernel, padding), image)(
        gradient
    )
    _, H, W, _ = gradient.shape
    image = jnp.pad(image, ((0, 0), padding, (1, 1), (0, 0)))
    of_kernel = [
        jnp.einsum("bhwc,bhwd->cd", image[:, down : down + H, right : right + W], gradient)
        for down, right in np.ndindex(3, 3)
    ]
    return of_image, jnp.stack(of_kernel).reshape(kernel.shape)


convolve.defvjp(_forward, _backward)


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
