"""Mixup and CutMix as the official code mixes: each group of rows by one of the two.

A group is a batch of one device there; here it is a number of neighbouring rows, on any devices.
"""

import typing

import jax
import jax.numpy as jnp

from nest_dist.base import rng, settings
from nest_dist.base.checks import Within
from nest_dist.train.augment import mixing


@settings.register
class GroupMixing:
    """Each group is mixed by mixup or by CutMix, with even chances; targets follow.

    A draw is u^(1 / alpha) / 2, in [0, 1/2], for u drawn evenly. Mixup adds that share of a picture
    of the group, drawn at random. CutMix keeps a rectangle of that area, nearer to the upper left
    corner, of a picture, and takes the rest from the one as far from the end of the group; the
    target has the area that was drawn, whose sides were then cut off to pixels.

    Attributes:
        mixup_alpha: of mixup's draw; 1 draws evenly, less more often small shares.
        cutmix_alpha: of CutMix's draw.
        rows: of a group; the official batches have 64 for NesT-T and NesT-S, 16 for NesT-B.
    Source: arXiv 1710.09412; arXiv 1905.04899; as in the official implementation of NesT.
    """

    mixup_alpha: mixing.Alpha
    cutmix_alpha: mixing.Alpha
    rows: typing.Annotated[int, Within(2)]

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixed images and targets [B, classes], float32; B holds whole groups."""
        choice_key, order_key, amount_key, position_key = jax.random.split(key, 4)
        groups = rows.reshape(-1, self.rows)[:, 0] // self.rows  # [G]
        group_is_mixup = rng.uniform(rng.keys(choice_key, groups)) < 0.5
        shuffled = jax.vmap(lambda key: jax.random.permutation(key, self.rows))(
            rng.keys(order_key, groups)
        )
        backwards = jnp.arange(self.rows)[::-1]
        partners = jnp.where(group_is_mixup[:, None], shuffled, backwards)  # [G, rows]
        is_mixup = jnp.repeat(group_is_mixup, self.rows)  # [B]
        drawn = rng.uniform(rng.keys(amount_key, rows))
        area = drawn ** (1 / self.cutmix_alpha) / 2
        own = jnp.where(is_mixup, 1 - drawn ** (1 / self.mixup_alpha) / 2, area)  # [B]
        masks = self.masks(images.shape, area, rng.keys(position_key, rows))
        pixels = jnp.where(is_mixup[:, None, None], own[:, None, None], masks)[..., None]
        others = self._taken(images, partners)
        own = own[:, None]
        return (
            pixels * images + (1 - pixels) * others,
            own * targets + (1 - own) * self._taken(targets, partners),
        )

    def masks(self, shape: tuple[int, ...], area: jax.Array, keys: jax.Array) -> jax.Array:
        """1 in a rectangle of the picture's own aspect, 0 elsewhere: [B, H, W].

        Args:
            shape: of the images, [B, H, W, C].
            area: of the rectangles, as shares of the picture [B].
            keys: of their positions [B].
        """
        _, H, W, _ = shape
        length = jnp.sqrt(area)[:, None]
        down, right = jnp.split(rng.uniform(keys, (2,)), 2, axis=1)  # [B, 1] each

        def inside(side: int, at: jax.Array) -> jax.Array:
            size = jnp.floor(length * side)
            # The remainder of a draw from the whole side: low positions come more often.
            first = jnp.floor(at * side) % (side - size)
            return (jnp.arange(side) >= first) & (jnp.arange(side) < first + size)

        rows, columns = inside(H, down), inside(W, right)  # [B, H], [B, W]
        return jnp.float32(rows[:, :, None] & columns[:, None, :])

    def _taken(self, values: jax.Array, partners: jax.Array) -> jax.Array:
        """Each row [B, ...] replaced by the partner [G, rows] in its group."""
        grouped = values.reshape(-1, self.rows, *values.shape[1:])
        return jax.vmap(lambda group, rows: group[rows])(grouped, partners).reshape(values.shape)
