"""Windows that reach over the border between devices which share out the rows of images.

The blocks of NesT never need each other inside a level, so only what lies between two levels
comes here: each device gives a border row to its neighbours, and nothing else.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nest_dist.parallel import rules

Padding = tuple[int, int]  # rows above, rows below


def over_rows(
    function: Callable[..., jax.Array],
    image: jax.Array,
    *whole: jax.Array,
    axis: str | None,
    reach: Padding,
    border: float,
) -> jax.Array:
    """`function(image, *whole, padding=reach)`, computed where the rows of the image lie.

    Args:
        function: of [B, H, W, C] with `padding` rows of `border` added by itself above and below;
            its rows follow those of the image, on each device by itself.
        image: [B, H, W, C].
        whole: what else `function` takes, the same for all rows.
        axis: logical axis of the rows; None if they are together, as without a layout.
        reach: rows that it needs above and below its own.
        border: what lies outside the image.
    """
    layout = rules.active()
    place = layout.places(("batch", axis, None, None), image.shape)[1] if layout else ()
    if layout is None or not place:
        return function(image, *whole, padding=reach)

    def local(part: jax.Array, *whole: jax.Array) -> jax.Array:
        return function(_exchange(part, place, reach, border), *whole, padding=(0, 0))

    by_rows = PartitionSpec(None, place)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(by_rows, *(PartitionSpec() for _ in whole)),
        out_specs=by_rows,
        axis_names=set(place),  # the compiler goes on to place everything along the other axes
    )(image, *whole)


def _exchange(part: jax.Array, axis: tuple[str, ...], reach: Padding, border: float) -> jax.Array:
    """One device's rows with those of its neighbours above and below."""
    above, below = reach
    count, index = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    pieces = [part]
    if above:
        down = [(source, source + 1) for source in range(count - 1)]
        received = jax.lax.ppermute(part[:, -above:], axis, down)
        pieces.insert(0, jnp.where(index == 0, jnp.asarray(border, part.dtype), received))
    if below:
        up = [(source + 1, source) for source in range(count - 1)]
        received = jax.lax.ppermute(part[:, :below], axis, up)
        pieces.append(jnp.where(index == count - 1, jnp.asarray(border, part.dtype), received))
    return jnp.concatenate(pieces, axis=1)
