"""What a forward pass computes on its way: tokens of each level, and attention."""

import typing
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import tree_paths
from nest_dist.model import attention, encoder, linen, nest


class Inside(typing.NamedTuple):
    """Arrays of one forward pass; lists have an item for each level, first level first."""

    logits: Array  # float32 [B, classes]; features [B, C] of a model without head
    levels: list[Array]  # output of each level, [B, T, N, C]
    normalized: Array  # float32, what the mean before the head averages, [B, T, N, C]
    # Weights in the last layer of each level, float32 [B, T, K, N, N]: heads, queries, keys
    attention: list[Array]


def forward(
    model: nest.NesT,
    params: Mapping[str, tree_paths.Tree],
    images: Array,
    offsets: typing.Sequence[Array] = (),
    fixed_deviation: bool = False,
) -> Inside:
    """The arrays of one forward pass.

    Args:
        model: computes in its own types; how its layers are compiled does not matter here.
        images: float32 [B, H, W, C].
        offsets: added to the output of each level, [B, T, N, C]; by zeros one differentiates
            with respect to the tokens.
        fixed_deviation: whether gradients take the standard deviations of all norms for constants.
    """
    model = model.clone(layers="unrolled", remat="none")
    last_layers = {
        (f"levels_{level}", f"layers_{depth - 1}", "attention"): level
        for level, depth in enumerate(model.block_repeats)
    }
    levels: dict[int, Array] = {}
    weights: dict[int, Array] = {}
    normalized: list[Array] = []

    def keep(
        called: Callable[..., Array],
        args: tuple[typing.Any, ...],
        kwargs: Mapping[str, typing.Any],
        context: nn.module.InterceptorContext,
    ) -> Array:
        output, module = called(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return output
        if isinstance(module, encoder.Level):
            level = len(levels)
            levels[level] = output = output + offsets[level] if offsets else output
        elif isinstance(module, attention.BlockAttention) and module.path in last_layers:
            own = module.variables["params"]
            weights[last_layers[module.path]] = _weights(own, args[0], module)
        elif isinstance(module, linen.LayerNorm):
            output = _with_fixed_deviation(module, args[0]) if fixed_deviation else output
            if module.path == ("norm",):
                normalized.append(output)
        return output

    with nn.intercept_methods(keep):
        logits = model.apply({"params": params}, images)
    count = range(model.num_hierarchies)
    return Inside(logits, [levels[i] for i in count], normalized[0], [weights[i] for i in count])


def _with_fixed_deviation(module: linen.LayerNorm, tokens: Array) -> Array:
    """As the norm computes it; gradients pass through its mean alone."""
    own, tokens = module.variables["params"], tokens.astype(jnp.float32)
    centred = tokens - tokens.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    scaled = centred * jax.lax.stop_gradient(scale)
    return (scaled * own["scale"] + own["bias"]).astype(module.compute_dtype)


def _weights(
    params: Mapping[str, tree_paths.Tree], blocks: Array, module: attention.BlockAttention
) -> Array:
    """Float32 [B, T, K, N, N]: of each query, how much of the value of each key it takes."""

    def project(name: str) -> Array:
        kernel = params[name]["kernel"].astype(module.compute_dtype)
        return jnp.einsum("btnc,ckd->btnkd", blocks, kernel) + params[name]["bias"]

    query, key = project("query"), project("key")
    *_, D = query.shape
    if module.multi_query:
        key = jnp.broadcast_to(key, query.shape)
    scores = jnp.einsum("btnkd,btmkd->btknm", query.astype(jnp.float32), key.astype(jnp.float32))
    return jax.nn.softmax(scores * D**-0.5)
