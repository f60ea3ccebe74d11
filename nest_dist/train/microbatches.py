"""A mean over microbatches, which are computed one after the other to save memory."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import tree_paths
from nest_dist.sharding import rules
from nest_dist.train import objectives


def mean(
    function: Callable[[objectives.Batch], tree_paths.Tree],
    batch: objectives.Batch,
    batch_axes: Mapping[str, rules.Axes],
    microbatches: int,
    mixing_group: int,
) -> tree_paths.Tree:
    """The mean of `function` over the microbatches of a batch.

    Every microbatch has examples of all devices, so no example moves to another device.

    Args:
        function: of a microbatch.
        batch: arrays [B, ...].
        batch_axes: logical axes by name.
        microbatches: their number; `mixing_group * microbatches` divides the examples of a device.
        mixing_group: neighbouring rows that stay in one microbatch.
    """
    if microbatches == 1:
        return function(batch)

    def stacked(x: jax.Array, axes: rules.Axes) -> jax.Array:
        B, *rest = x.shape
        groups = x.reshape(-1, microbatches, mixing_group, *rest).swapaxes(0, 1)
        return rules.constrain(groups.reshape(microbatches, B // microbatches, *rest), None, *axes)

    def add(total: tree_paths.Tree, microbatch: objectives.Batch) -> tuple[tree_paths.Tree, None]:
        return jax.tree.map(jnp.add, total, function(microbatch)), None

    parts = {name: stacked(x, batch_axes[name]) for name, x in batch.items()}
    shapes = jax.eval_shape(function, {name: x[0] for name, x in parts.items()})
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: leaf / microbatches, total)
