"""Random erasing on the device: a rectangle of noise, after normalization."""

import math
import typing

import jax
import jax.numpy as jnp

from nest_dist.base import checks, rng, settings
from nest_dist.base.checks import Within


@settings.register
class RandomErasing:
    """A random rectangle of a picture becomes normal noise; it may reach over the border.

    Attributes:
        probability: that a picture is changed.
        area: smallest and largest share of the picture, drawn evenly; in (0, 1].
        aspect: smallest and largest height / width, drawn evenly on a logarithmic scale.
    Source: arXiv 1708.04896, without the repeated drawing, as in the official implementation of
        NesT.
    """

    probability: typing.Annotated[float, Within(0, 1)]
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        checks.interval("RandomErasing.area", self.area, 0, 1)
        checks.interval("RandomErasing.aspect", self.aspect, 0)

    def __call__(self, images: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Erases in float32 images whose mean is 0 and standard deviation 1."""
        mask_key, noise_key = jax.random.split(key)
        masks = self.masks(images.shape, rng.keys(mask_key, rows))
        noise = rng.normal(rng.keys(noise_key, rows), images.shape[1:])
        return jnp.where(masks[..., None], noise, images)

    def masks(self, shape: tuple[int, ...], keys: jax.Array) -> jax.Array:
        """Which pixels are erased, bool [B, H, W], by keys [B]."""
        _, H, W, _ = shape
        drawn = rng.uniform(keys, (5,))
        choice, size, form, down, right = jnp.split(drawn, 5, axis=1)  # [B, 1] each
        area = self.area[0] + (self.area[1] - self.area[0]) * size
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        aspect = jnp.exp(low + (high - low) * form)
        height, width = H * jnp.sqrt(area * aspect), W * jnp.sqrt(area / aspect)
        rows = jnp.abs(jnp.arange(H) - H * down) < height / 2  # [B, H]
        columns = jnp.abs(jnp.arange(W) - W * right) < width / 2  # [B, W]
        chosen = (choice < self.probability)[..., None]
        return rows[:, :, None] & columns[:, None, :] & chosen
