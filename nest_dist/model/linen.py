"""Layers of Linen, and what NesT adds to them.

- `gathered` casts and gathers the parameters of a layer that are sharded over `fsdp`.
- `Dense`, `DenseGeneral`, `projections` compute products in the form that suits the platform.
- `convolve_patches`, `Params`, `LayerNorm`, `gelu` replace what Linen and JAX offer, and say why.
"""

import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import tree_paths
from nest_dist.model import on_cpu, parameters, patching
from nest_dist.sharding import rules

ComputeDtype = typing.Literal["float32", "bfloat16"]
Gelu = typing.Literal["tanh", "exact"]
Layer = typing.TypeVar("Layer", bound=nn.Module)

# The official code, too, truncates at two of these standard deviations.
kernel_init = nn.initializers.truncated_normal(stddev=0.02)


def gathered(
    layer: type[Layer], parent: nn.Module, compute_dtype: ComputeDtype, name: str = ""
) -> type[Layer]:
    """`layer` with its parameters cast to the compute dtype, then gathered over `fsdp`.

    Where `layer` is rematerialized, the backward pass gathers again.

    Args:
        layer: a module class.
        parent: the module that uses it.
        compute_dtype: of the cast; norms stay float32.
        name: of `layer`, if it holds parameters itself.
    """
    if rules.active() is None or parent.is_initializing():
        return layer

    def gather(path: str, value: Array) -> Array:
        return gather_parameter(f"{name}/{path.removeprefix('params/')}", value, compute_dtype)

    return nn.map_variables(layer, "params", functools.partial(tree_paths.map_named, gather))


def gather_parameter(name: str, value: Array, compute_dtype: ComputeDtype) -> Array:
    """One parameter, cast, then gathered; `name` ends as in `parameters.PARAMETER_AXES`."""
    value = value.astype("float32" if tree_paths.matches(name, ["*norm/*"]) else compute_dtype)
    _, axes = rules.axes_of(name, parameters.PARAMETER_AXES)
    return rules.gathered(value, axes)


def dot_general(
    tokens: Array,
    kernel: Array,
    dimension_numbers: jax.lax.DotDimensionNumbers,
    precision: jax.lax.PrecisionLike = None,
) -> Array:
    """`jax.lax.dot_general` of the last dimensions of tokens and the first of a kernel."""
    plain = functools.partial(
        jax.lax.dot_general, dimension_numbers=dimension_numbers, precision=precision
    )
    if _sharded("rows"):
        # Blocks on several devices cannot share one dimension with the examples.
        return plain(tokens, kernel)
    (_, contracted), _ = dimension_numbers
    return on_cpu.instead(
        tokens,
        kernel,
        cpu=functools.partial(on_cpu.dot_general, contracted=len(contracted)),
        default=plain,
    )


Dense = functools.partial(nn.Dense, kernel_init=kernel_init, dot_general_cls=lambda: dot_general)
DenseGeneral = functools.partial(
    nn.DenseGeneral, kernel_init=kernel_init, dot_general_cls=lambda: dot_general
)


def projections(tokens: Array, *kernels: Array) -> tuple[Array, ...]:
    """Products of tokens [..., C] with several kernels [C, K, D]: [..., K, D] per kernel."""

    def plain(tokens: Array, *kernels: Array) -> tuple[Array, ...]:
        return tuple(jnp.tensordot(tokens, kernel, 1) for kernel in kernels)

    if _sharded("rows"):
        return plain(tokens, *kernels)
    if _sharded("heads"):
        # Heads on several devices would have to move to become heads of one kernel.
        last_with_first = (((tokens.ndim - 1,), (0,)), ((), ()))
        return tuple(dot_general(tokens, kernel, last_with_first) for kernel in kernels)
    return on_cpu.instead(tokens, *kernels, cpu=on_cpu.projections, default=plain)


def _sharded(axis: str) -> bool:
    context = rules.active()
    return context is not None and context.shards(axis) > 1


def convolve_patches(image: Array, kernel: Array, *_: object, **__: object) -> Array:
    """`jax.lax.conv_general_dilated` as `nn.Conv` calls it, its stride the size of its kernel.

    As one product of matrices; a convolution sums in another order, so its last bits differ.
    """
    patches = patching.to_patches(image, kernel.shape[0])
    return patches @ kernel.reshape(-1, kernel.shape[-1])


class Params(nn.Module):
    """Kernel and bias under the name of a layer that is computed elsewhere."""

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    compute_dtype: ComputeDtype

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Kernel and bias in the compute dtype."""
        kernel = self.param("kernel", kernel_init, self.kernel_shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.bias_shape, jnp.float32)
        return kernel.astype(self.compute_dtype), bias.astype(self.compute_dtype)


class LayerNorm(nn.Module):
    """`nn.LayerNorm` with statistics in float32 and the gradient of `standardized`.

    `nn.LayerNorm` multiplies the scale by 1 / std before the tokens, so its last bits differ.
    """

    compute_dtype: ComputeDtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Tokens [..., C] with mean 0 and variance 1, then scaled and shifted."""
        *_, C = tokens.shape
        scale = self.param("scale", nn.initializers.ones, (C,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (C,), jnp.float32)
        tokens = standardized(tokens.astype(jnp.float32))
        return (tokens * scale + bias).astype(self.compute_dtype)


@jax.custom_vjp
def standardized(x: Array) -> Array:
    """`x` [..., C] minus its mean over C, divided by its standard deviation.

    The gradient needs two sums; the one that JAX derives makes a training step 2% slower on a CPU.
    """
    return _standardized(x)[0]


def _standardized(x: Array) -> tuple[Array, tuple[Array, Array]]:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
    scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-6)
    result = (x - mean) * scale
    return result, (result, scale)


def _standardized_gradient(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    result, scale = residuals
    projection = result * (gradient * result).mean(-1, keepdims=True)
    return (scale * (gradient - gradient.mean(-1, keepdims=True) - projection),)


standardized.defvjp(_standardized, _standardized_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Array, kind: Gelu) -> Array:
    """`jax.nn.gelu`; the backward pass computes its derivative from `x`, the one residual."""
    return jax.nn.gelu(x, approximate=kind == "tanh")


def _gelu_gradient(kind: Gelu, x: Array, gradient: Array) -> tuple[Array]:
    _, pull_back = jax.vjp(functools.partial(jax.nn.gelu, approximate=kind == "tanh"), x)
    return pull_back(gradient)


gelu.defvjp(lambda x, kind: (gelu(x, kind), x), _gelu_gradient)
