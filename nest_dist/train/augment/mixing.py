"""Mixup and CutMix on the device: each picture with the one beside it in the batch.

Rows 2k and 2k + 1 form a pair. The order of examples is random anyway, and a pair never crosses
devices nor depends on how many there are.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import rng, settings
from nest_dist.base.checks import Within

QUANTILES = 4097
# Below, nearly all shares are 0 or 1; above, the density is too small for 64 bits.
Alpha = typing.Annotated[float, Within(0.001, 1000)]


@settings.register
class Mixing:
    """Each step is mixed by mixup or by CutMix, with even chances; targets follow the pixels.

    Attributes:
        mixup_alpha: both parameters of mixup's Beta distribution.
        cutmix_alpha: both parameters of CutMix's.
        mixup_share: share of steps that are mixed by mixup.
        rows: of a group that is mixed within itself.
    Source: arXiv 1710.09412; arXiv 1905.04899.
    """

    mixup_alpha: Alpha
    cutmix_alpha: Alpha
    mixup_share: typing.Annotated[float, Within(0, 1)] = 0.5
    rows: typing.ClassVar[int] = 2

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixed images, float32, and their targets, class distributions [B, classes]; B is even."""
        choice_key, amount_key, position_key = jax.random.split(key, 3)
        amounts, positions = rng.keys(amount_key, rows), rng.keys(position_key, rows)
        is_mixup = jax.random.uniform(choice_key) < self.mixup_share
        own = jnp.where(
            is_mixup,
            self.mixup_shares(images.shape, amounts),
            self.cutmix_masks(images.shape, amounts, positions),
        )  # [B, H, W]: how much of each pixel is the picture's own
        target_share = own.mean(axis=(1, 2))[:, None]
        pixel_share = own[..., None]
        return (
            pixel_share * images + (1 - pixel_share) * partners(images),
            target_share * targets + (1 - target_share) * partners(targets),
        )

    def mixup_shares(self, shape: tuple[int, ...], keys: jax.Array) -> jax.Array:
        """The own share, the same for all pixels of a picture and at least a half: [B, H, W]."""
        share = beta(keys, self.mixup_alpha)
        return jnp.broadcast_to(jnp.maximum(share, 1 - share)[:, None, None], shape[:3])

    def cutmix_masks(
        self, shape: tuple[int, ...], amounts: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """0 in a random rectangle of the picture's own aspect, 1 elsewhere: [B, H, W].

        `amounts` are the keys [B] of the rectangles' sizes.
        """
        _, H, W, _ = shape
        length = jnp.sqrt(1 - beta(amounts, self.cutmix_alpha))[:, None]
        down, right = jnp.split(rng.uniform(positions, (2,)), 2, axis=1)  # [B, 1] each

        def inside(side: int, at: jax.Array) -> jax.Array:
            size = jnp.round(length * side)
            first = jnp.floor(at * (side - size + 1))
            return (jnp.arange(side) >= first) & (jnp.arange(side) < first + size)

        rows, columns = inside(H, down), inside(W, right)  # [B, H], [B, W]
        return 1.0 - (rows[:, :, None] & columns[:, None, :])


def partners(rows: jax.Array) -> jax.Array:
    """Each row replaced by the other one of its pair."""
    B, *rest = rows.shape
    return rows.reshape(B // 2, 2, *rest)[:, ::-1].reshape(B, *rest)


def beta(keys: jax.Array, alpha: float) -> jax.Array:
    """A draw from Beta(alpha, alpha) for each of the keys [B], by its quantile function.

    JAX's own sampler rejects until it accepts; a table needs no loop, and over many devices none
    that waits for all of them.
    """
    drawn = rng.uniform(keys)
    low = jnp.minimum(drawn, 1 - drawn)
    half = jnp.interp(2 * low, jnp.linspace(0, 1, QUANTILES), _half_quantiles(alpha))
    value = half ** (1 / _power(alpha))
    return jnp.where(drawn < 0.5, value, 1 - value)


@functools.cache
def _half_quantiles(alpha: float) -> np.ndarray:
    """x**power at evenly spaced shares of the lower half of Beta(alpha, alpha).

    In t = x**power, with x in [0, 1/2], the density is proportional to
    (1 - x)**(alpha - 1) * t**(alpha / power - 1).
    """
    power = _power(alpha)
    t = np.linspace(0, 0.5**power, 16 * QUANTILES)
    # Of t itself, the last power would underflow for a large alpha.
    density = (1 - t ** (1 / power)) ** (alpha - 1) * (t / t[-1]) ** (alpha / power - 1)
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0, 1, QUANTILES), share / share[-1], t).astype(np.float32)


def _power(alpha: float) -> float:
    """The power of x in which the lower half of Beta(alpha, alpha) is smooth and fills its range.

    In x the density has a pole at 0 for alpha < 1, and none in x**alpha. For a large alpha it is
    as narrow as 1 / sqrt(alpha), at x = 1/2. There x**alpha varies by many orders of magnitude,
    most of them between two points of a grid; a power that grows like sqrt(alpha) varies by few.
    """
    return alpha if alpha <= 1 else 2 * alpha**0.5 - 1
