"""How XLA compiles a model for a GPU, and attention by cuDNN."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import failures
from nest_dist.sharding import rules

# `jax.Device.platform` of a GPU that is here, and of one that is only compiled for.
PLATFORMS = ("gpu", "cuda")

# A run that is killed and resumed must end with the bits of an undisturbed one. So XLA leaves out
# sums in the order in which threads come, and chooses by rules instead of measuring (autotuning),
# which may choose otherwise at the next start. Source: openxla/xla, xla.proto, at this option.
COMPILER_OPTIONS = {"xla_gpu_deterministic_ops": True}
# Of the first GPU for which cuDNN has fused attention, Ampere.
CAPABILITY = 8.0
# Of [B, N, K, D]; stores no scores.
_attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")


def attend(query: Array, key: Array, value: Array) -> Array:
    """The mean of the values for each query by cuDNN.

    Args:
        query: scaled, bfloat16 [B, T, N, K, D].
        key: as `query`.
        value: as `query`.
    """

    def on_device(_: object, *arrays: Array) -> Array:
        blocks = (it.reshape(-1, *it.shape[2:]) for it in arrays)
        return _attend(*blocks).reshape(arrays[0].shape)

    axes = ("batch", "rows", None, "heads", None)
    arrays = [(it, axes) for it in (query, key, value)]
    return rules.on_each_device(on_device, {}, arrays, (query.shape, axes))


def obstacle(device: jax.Device, tokens: int, width: int) -> str | None:
    """Why cuDNN cannot attend to blocks of `tokens` with heads of `width` channels, as a clause."""
    capability = getattr(device, "compute_capability", CAPABILITY)
    if float(capability) < CAPABILITY:
        return f"{device.device_kind} is of compute capability {capability}, below {CAPABILITY}"
    block = jax.ShapeDtypeStruct((1, tokens, 1, width), jnp.bfloat16)
    try:
        jax.eval_shape(_attend, block, block, block)
    except RuntimeError as error:  # JAX asks cuDNN's version and limits while it traces
        return f"cuDNN refuses ({failures.first_line(error)})"
    return None
