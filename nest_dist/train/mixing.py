"""Mixup and CutMix on the device: each picture with the one beside it in the batch.

Rows 2k and 2k + 1 form a pair. The order of examples is random anyway, and a pair never crosses
devices nor depends on how many there are.
"""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import chance, checks, failures

QUANTILES = 4097


@gin.register
@dataclasses.dataclass(frozen=True)
class Mixing:
    """Each step is mixed by mixup or by CutMix, with even chances; targets follow the pixels.

    Attributes:
        mixup_alpha: both parameters of mixup's Beta distribution, above 0.
        cutmix_alpha: both parameters of CutMix's, above 0.
        mixup_share: share of steps that are mixed by mixup, in [0, 1].
    Source: arXiv 1710.09412; arXiv 1905.04899.
    """

    mixup_alpha: float
    cutmix_alpha: float
    mixup_share: float = 0.5

    def __post_init__(self) -> None:
        checks.types(self)
        for name in ("mixup_alpha", "cutmix_alpha"):
            if (alpha := getattr(self, name)) <= 0:
                raise failures.BadInput(f"Mixing.{name} is {alpha}; it must be above 0.")
        checks.in_range("Mixing.mixup_share", self.mixup_share, 0, 1)

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixed images and targets.

        Args:
            images: float32 [B, H, W, C]; B is even.
            targets: class distributions [B, classes].
            key: of the step.
            rows: int32 [B], the number of each example in the global batch.
        """
        choice_key, amount_key, place_key = jax.random.split(key, 3)
        amounts, places = chance.keys(amount_key, rows), chance.keys(place_key, rows)
        is_mixup = jax.random.uniform(choice_key) < self.mixup_share
        own = jnp.where(
            is_mixup,
            self.mixup_shares(images.shape, amounts),
            self.cutmix_masks(images.shape, amounts, places),
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
        self, shape: tuple[int, ...], amounts: jax.Array, places: jax.Array
    ) -> jax.Array:
        """0 in a random rectangle of the picture's own aspect, 1 elsewhere: [B, H, W].

        Args:
            shape: of the images, [B, H, W, C].
            amounts: keys [B] of the sizes.
            places: keys [B].
        """
        _, H, W, _ = shape
        length = jnp.sqrt(1 - beta(amounts, self.cutmix_alpha))[:, None]
        down, right = jnp.split(chance.uniform(places, (2,)), 2, axis=1)  # [B, 1] each

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
    drawn = chance.uniform(keys)
    low = jnp.minimum(drawn, 1 - drawn)
    half = jnp.interp(2 * low, jnp.linspace(0, 1, QUANTILES), _half_quantiles(alpha))
    value = half ** (1 / alpha)
    return jnp.where(drawn < 0.5, value, 1 - value)


@functools.cache
def _half_quantiles(alpha: float) -> np.ndarray:
    """x**alpha at evenly spaced shares of the lower half of Beta(alpha, alpha).

    In t = x**alpha the density is proportional to (1 - t**(1/alpha))**(alpha - 1), which is smooth
    over the half, while in x it has a pole at 0 for alpha < 1.
    """
    t = np.linspace(0, 0.5**alpha, 16 * QUANTILES)
    density = (1 - t ** (1 / alpha)) ** (alpha - 1)
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0, 1, QUANTILES), share / share[-1], t).astype(np.float32)
