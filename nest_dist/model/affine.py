"""The parameters that layers share in kind: kernels, biases and norms, with their first values."""

import typing

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

ComputeDtype = typing.Literal["float32", "bfloat16"]
Shape = tuple[int, ...]

# The standard deviation is that before truncation at two of them, as in the official code.
initial = nn.initializers.truncated_normal(stddev=0.02)


def declare(
    module: nn.Module, kernel_shape: Shape, bias_shape: Shape, compute_dtype: ComputeDtype
) -> tuple[Array, Array]:
    """A kernel and a bias of `module`, kept in float32 and given in the compute dtype."""
    kernel = module.param("kernel", initial, kernel_shape, jnp.float32)
    bias = module.param("bias", nn.initializers.zeros, bias_shape, jnp.float32)
    return kernel.astype(compute_dtype), bias.astype(compute_dtype)


class Affine(nn.Module):
    """Holds a kernel and a bias under a name; the layer that asks for them applies them."""

    kernel_shape: Shape
    bias_shape: Shape
    compute_dtype: ComputeDtype

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Kernel and bias in the compute dtype."""
        return declare(self, self.kernel_shape, self.bias_shape, self.compute_dtype)


def norm(compute_dtype: ComputeDtype, name: str) -> nn.LayerNorm:
    """LayerNorm over channels; its statistics are float32 whatever the compute dtype."""
    return nn.LayerNorm(epsilon=1e-6, dtype=compute_dtype, param_dtype=jnp.float32, name=name)
