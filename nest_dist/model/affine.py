"""The parameters that layers share in kind: kernels, biases and norms, with their first values."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.model import axes, on_cpu
from nest_dist.parallel import rules

ComputeDtype = typing.Literal["float32", "bfloat16"]
Shape = tuple[int, ...]

# The standard deviation is that before truncation at two of them, as in the official code.
initial = nn.initializers.truncated_normal(stddev=0.02)


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: Shape,
    compute_dtype: ComputeDtype,
) -> Array:
    """A parameter of `module`, kept in float32 and given in the compute dtype, ready for use.

    Stored in parts over the devices, it is gathered here: inside a layer, so that what the
    backward pass computes again it also gathers again.
    """
    value = module.param(name, init, shape, jnp.float32).astype(compute_dtype)
    if rules.active() is None:
        return value
    _, logical = rules.axes_of("/".join((*module.path, name)), axes.PARAMETER_AXES)
    return rules.gathered(value, logical)


def declare(
    module: nn.Module, kernel_shape: Shape, bias_shape: Shape, compute_dtype: ComputeDtype
) -> tuple[Array, Array]:
    """A kernel and a bias of `module` in the compute dtype."""
    return (
        parameter(module, "kernel", initial, kernel_shape, compute_dtype),
        parameter(module, "bias", nn.initializers.zeros, bias_shape, compute_dtype),
    )


def contract(tokens: Array, kernel: Array, count: int = 1) -> Array:
    """The sum of products over the last `count` dimensions of tokens and the first of a kernel.

    Args:
        tokens: [..., *summed].
        kernel: [*summed, *new].
        count: how many dimensions `summed` has.
    Returns:
        [..., *new].
    """
    layout = rules.active()
    if layout is not None and layout.shards("rows") > 1:
        # Blocks that lie on several devices cannot be one dimension together with the examples.
        return jnp.tensordot(tokens, kernel, count)
    product: Array = jax.lax.platform_dependent(
        tokens,
        kernel,
        cpu=lambda tokens, kernel: on_cpu.contract(tokens, kernel, count),
        default=lambda tokens, kernel: jnp.tensordot(tokens, kernel, count),
    )
    return product


def contract_each(tokens: Array, *kernels: Array) -> tuple[Array, ...]:
    """As `contract` over the last dimension of tokens, with each of several kernels of heads."""
    layout = rules.active()
    if layout is not None and (layout.shards("rows") > 1 or layout.shards("heads") > 1):
        # Heads that lie on several devices would have to move to become those of one kernel.
        return tuple(contract(tokens, kernel) for kernel in kernels)
    products: tuple[Array, ...] = jax.lax.platform_dependent(
        tokens,
        *kernels,
        cpu=on_cpu.contract_each,
        default=lambda tokens, *kernels: tuple(
            jnp.tensordot(tokens, kernel, 1) for kernel in kernels
        ),
    )
    return products


class Affine(nn.Module):
    """Holds a kernel and a bias under a name; the layer that asks for them applies them."""

    kernel_shape: Shape
    bias_shape: Shape
    compute_dtype: ComputeDtype

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Kernel and bias in the compute dtype."""
        return declare(self, self.kernel_shape, self.bias_shape, self.compute_dtype)


class Norm(nn.Module):
    """LayerNorm over channels; its statistics are float32 whatever the compute dtype."""

    compute_dtype: ComputeDtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Tokens [..., C] with mean 0 and variance 1, then scaled and shifted."""
        *_, C = tokens.shape
        scale = parameter(self, "scale", nn.initializers.ones, (C,), "float32")
        bias = parameter(self, "bias", nn.initializers.zeros, (C,), "float32")
        plain = normalized(tokens.astype(jnp.float32))
        return (plain * scale + bias).astype(self.compute_dtype)


@jax.custom_vjp
def normalized(x: Array) -> Array:
    """`x` [..., C] less its mean over C, divided by its standard deviation.

    As `flax.linen.LayerNorm`, but for the gradient, which needs two sums here.
    """
    return _normalized(x)[0]


def _normalized(x: Array) -> tuple[Array, tuple[Array, Array]]:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
    scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-6)
    plain = (x - mean) * scale
    return plain, (plain, scale)


def _normalized_gradient(kept: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    plain, scale = kept
    along = plain * (gradient * plain).mean(-1, keepdims=True)
    return (scale * (gradient - gradient.mean(-1, keepdims=True) - along),)


normalized.defvjp(_normalized, _normalized_gradient)
