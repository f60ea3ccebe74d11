"""From the bytes on the wire to what the model sees, on the device."""

import dataclasses

import gin
import jax
import jax.numpy as jnp

from nest_dist.base import checks, failures


@gin.register
@dataclasses.dataclass(frozen=True)
class Pixels:
    """Normalises uint8 images by the mean and standard deviation of each channel.

    Attributes:
        mean: of each channel, on the scale [0, 1].
        standard_deviation: of each channel, on the scale [0, 1].
    """

    mean: tuple[float, ...]
    standard_deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        checks.types(self)
        if len(self.mean) != len(self.standard_deviation):
            raise failures.BadInput(
                f"Pixels.mean has {len(self.mean)} channels, Pixels.standard_deviation "
                f"{len(self.standard_deviation)}; give one number a channel in both."
            )
        for deviation in self.standard_deviation:
            if deviation <= 0:
                raise failures.BadInput(
                    f"Pixels.standard_deviation has {deviation}; each must be above 0."
                )

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] from uint8 [B, H, W, C]."""
        mean = 255 * jnp.asarray(self.mean, jnp.float32)
        scale = 1 / (255 * jnp.asarray(self.standard_deviation, jnp.float32))
        return (images.astype(jnp.float32) - mean) * scale

    def inverted(self, normalised: jax.Array) -> jax.Array:
        """uint8 images from normalised ones; what no pixel can be becomes the nearest it can."""
        mean, deviation = jnp.asarray(self.mean), jnp.asarray(self.standard_deviation)
        return jnp.clip(jnp.round(255 * (normalised * deviation + mean)), 0, 255).astype(jnp.uint8)
