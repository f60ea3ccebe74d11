"""Windows across the border between devices that shard the rows of images.

Inside a level of NesT the blocks are independent. So only the operations between two levels need
rows of another device: each device sends border rows to its neighbours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nest_dist.sharding import rules

Padding = tuple[int, int]  # rows above, rows below


def over_rows(
    function: Callable[..., jax.Array],
    image: jax.Array,
    *operands: jax.Array,
    axis: str | None,
    reach: Padding,
    border: float,
) -> jax.Array:
    """`function(image, *operands, padding=reach)`, computed on the devices that hold the rows.

    Args:
        function: of [B, H, W, C]; it adds `padding` rows of `border` above and below. The rows of
            its result are sharded as those of the image.
        image: [B, H, W, C].
        operands: the same for all rows.
        axis: logical axis of the rows; None if they are not sharded.
        reach: rows that `function` needs above and below a shard.
        border: value outside of the image.
    """
    context = rules.active()
    mesh_axes = context.mesh_axes(("batch", axis, None, None), image.shape)[1] if context else ()
    if context is None or not mesh_axes:
        return function(image, *operands, padding=reach)

    def local(shard: jax.Array, *operands: jax.Array) -> jax.Array:
        return function(_exchange(shard, mesh_axes, reach, border), *operands, padding=(0, 0))

    by_rows = PartitionSpec(None, mesh_axes)
    return jax.shard_map(
        local,
        mesh=context.mesh,
        in_specs=(by_rows, *(PartitionSpec() for _ in operands)),
        out_specs=by_rows,
        axis_names=set(mesh_axes),  # the compiler still shards along the other axes
    )(image, *operands)


def _exchange(
    shard: jax.Array, mesh_axes: tuple[str, ...], reach: Padding, border: float
) -> jax.Array:
    """One device's rows, with rows of its neighbours above and below."""
    above, below = reach
    count, index = jax.lax.axis_size(mesh_axes), jax.lax.axis_index(mesh_axes)
    pieces = [shard]
    if above:
        down = [(source, source + 1) for source in range(count - 1)]
        received = jax.lax.ppermute(shard[:, -above:], mesh_axes, down)
        pieces.insert(0, jnp.where(index == 0, jnp.asarray(border, shard.dtype), received))
    if below:
        up = [(source + 1, source) for source in range(count - 1)]
        received = jax.lax.ppermute(shard[:, :below], mesh_axes, up)
        pieces.append(jnp.where(index == count - 1, jnp.asarray(border, shard.dtype), received))
    return jnp.concatenate(pieces, axis=1)
