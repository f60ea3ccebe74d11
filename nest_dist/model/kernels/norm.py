"""LayerNorm inside a kernel, with tokens as columns or as rows, and its gradient."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-6


def plain(x: Array, params: Mapping[str, Array]) -> Array:
    """LayerNorm of `x` [..., C] with "scale" and "bias" [C]."""
    return standardized(x, -1)[0] * params["scale"] + params["bias"]


def standardized(x: Array, axis: int) -> tuple[Array, Array]:
    """`x` minus its mean over the channels along `axis`, times `scale`; and that scale.

    Along the first axis, a register's sublanes, sums are additions of registers; along lanes each
    is a chain of rotations.
    """
    centred = x - jnp.mean(x, axis, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis, keepdims=True) + EPSILON)
    return centred * scale, scale


def columns(tokens: Array) -> tuple[Array, Array]:
    """`standardized` tokens as columns [C, N] from rows [N, C], and the scale [1, N]."""
    return standardized(jnp.transpose(tokens.astype(jnp.float32)), 0)


def standardized_gradient(standard: Array, scale: Array, gradient: Array, axis: int) -> Array:
    """The gradient of `x` from that of `standardized` along the same axis."""
    along = standard * jnp.mean(gradient * standard, axis, keepdims=True)
    return scale * (gradient - jnp.mean(gradient, axis, keepdims=True) - along)
