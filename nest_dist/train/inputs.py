"""The inputs of the model in a training step, computed on the device from uint8 images."""

import typing

import jax
import jax.numpy as jnp

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.train.augment import erasing, group_mixing, jitter
from nest_dist.train.augment import mixing as mixings


@settings.register
class Normalize:
    """Normalizes uint8 images by the mean and standard deviation of each channel.

    Attributes:
        mean: of each channel, in [0, 1].
        std: standard deviation of each channel, in (0, 1].
    """

    mean: tuple[float, ...]
    std: typing.Annotated[tuple[float, ...], Within(0, open_low=True)]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise failures.BadInput(
                f"Normalize.mean has {len(self.mean)} channels, Normalize.std "
                f"{len(self.std)}; give one number a channel in both."
            )

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] from values [B, H, W, C] in [0, 255]."""
        mean = 255 * jnp.asarray(self.mean, jnp.float32)
        scale = 1 / (255 * jnp.asarray(self.std, jnp.float32))
        return (images.astype(jnp.float32) - mean) * scale

    def values(self, normalized: jax.Array) -> jax.Array:
        """The values that were normalized, float32, in [0, 255] where they were."""
        mean, deviation = jnp.asarray(self.mean), jnp.asarray(self.std)
        return 255 * (normalized * deviation + mean)

    def inverted(self, normalized: jax.Array) -> jax.Array:
        """uint8 images from normalized ones, clipped to [0, 255]."""
        return jnp.clip(jnp.round(self.values(normalized)), 0, 255).astype(jnp.uint8)


@settings.register
class Inputs:
    """Colour jitter, normalization, erasing and mixing, in this order; None skips one of them.

    Their randomness is keyed by the step and the row in the global batch, never by a device.

    Attributes:
        normalize: mean and standard deviation of the channels.
        color_jitter: random brightness, contrast and saturation.
        random_erasing: noise in place of a rectangle.
        mixing: mixup and CutMix, of neighbours or in groups.
    """

    normalize: Normalize
    color_jitter: jitter.ColorJitter | None = None
    random_erasing: erasing.RandomErasing | None = None
    mixing: mixings.Mixing | group_mixing.GroupMixing | None = None

    @property
    def mixing_group(self) -> int:
        """Neighbouring rows of a batch that must stay in one microbatch."""
        return 1 if self.mixing is None else self.mixing.rows

    def __call__(
        self, images: jax.Array, targets: jax.Array, key: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Float32 images from uint8 ones, and their targets [B, classes], by `key` and `rows`."""
        jitter_key, erasing_key, mixing_key = jax.random.split(key, 3)
        if self.color_jitter is None:
            normalized = self.normalize(images)
        else:
            jittered = self.color_jitter(images.astype(jnp.float32) / 255, jitter_key, rows)
            normalized = self.normalize(255 * jittered)
        if self.random_erasing is not None:
            normalized = self.random_erasing(normalized, erasing_key, rows)
        if self.mixing is not None:
            normalized, targets = self.mixing(normalized, targets, mixing_key, rows)
        return normalized, targets
