"""Gradients of a large batch from small ones, one after the other within a step."""

import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nest_dist.parallel import rules

Tree = typing.Any


def mean(
    function: Callable[[Mapping[str, jax.Array]], Tree],
    batch: Mapping[str, jax.Array],
    batch_axes: Mapping[str, rules.Axes],
    microbatches: int,
    together: int,
) -> Tree:
    """The mean over microbatches of what `function` gives, in float32.

    Every microbatch takes its examples from all over the batch, so each device keeps its own.

    Args:
        function: of a part of the batch.
        batch: arrays [B, ...].
        batch_axes: logical axes of each of them.
        microbatches: parts; `together * microbatches` divides the examples of each device.
        together: neighbours that stay in one part.
    """
    if microbatches == 1:
        return function(batch)

    def cut(name: str) -> jax.Array:
        B, *rest = batch[name].shape
        parts = batch[name].reshape(B // (microbatches * together), microbatches, together, *rest)
        parts = parts.swapaxes(0, 1).reshape(microbatches, B // microbatches, *rest)
        return rules.constrain(parts, None, *batch_axes[name])

    def add(total: Tree, part: Mapping[str, jax.Array]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    parts = {name: cut(name) for name in batch}
    shapes = jax.eval_shape(function, jax.tree.map(lambda part: part[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: leaf / microbatches, total)
