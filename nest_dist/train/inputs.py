"""What the model is given in a training step, made on the device from the bytes on the wire."""

import dataclasses

import jax
import jax.numpy as jnp

from nest_dist.train import erasing, jitter
from nest_dist.train import mixing as mixings
from nest_dist.train import pixels as pixel_scale


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Colour jitter, normalisation, erasing and mixing, in this order; what is None is left out.

    Attributes:
        pixels: how images are normalised.
        color_jitter: before normalisation.
        random_erasing: after it.
        mixing: last, together with the targets.
    """

    pixels: pixel_scale.Pixels
    color_jitter: jitter.ColorJitter | None = None
    random_erasing: erasing.RandomErasing | None = None
    mixing: mixings.Mixing | None = None

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Normalised images float32 [B, H, W, C] and their targets.

        All chance is keyed by the step and the row in the global batch, never by a device.

        Args:
            images: uint8 [B, H, W, C].
            targets: class distributions [B, classes].
            key: of the step.
            rows: int32 [B], the number of each example in the global batch.
        """
        jitter_key, erasing_key, mixing_key = jax.random.split(key, 3)
        if self.color_jitter is None:
            normalised = self.pixels(images)
        else:
            coloured = self.color_jitter(images.astype(jnp.float32) / 255, jitter_key, rows)
            normalised = self.pixels(255 * coloured)
        if self.random_erasing is not None:
            normalised = self.random_erasing(normalised, erasing_key, rows)
        if self.mixing is not None:
            normalised, targets = self.mixing(normalised, targets, mixing_key, rows)
        return normalised, targets
