"""Colour jitter on the device: a few element-wise operations inside the step."""

import typing

import jax
import jax.numpy as jnp

from nest_dist.base import failures, rng, settings
from nest_dist.base.checks import Within

# ITU-R BT.601, the weights of grey in Pillow, OpenCV and TensorFlow.
GREY_WEIGHTS = (0.299, 0.587, 0.114)
# Shares of `strength` as in SimCLR.
LIGHT_SHARE = 0.8
HUE_SHARE = 0.2


@settings.register
class ColorJitter:
    """Brightness, contrast, saturation and hue changed at random, each picture by its own amounts.

    Attributes:
        strength: brightness, contrast and saturation are multiplied by a factor in 1 +- 0.8
            strength, the hue moves by up to 0.2 strength of the circle.
        probability: that a picture is changed.
        grey_probability: that it becomes grey afterwards.
        order: of the four changes, drawn once a step, or for each picture, for which the device
            computes all four of them four times.
        rounding: "down" cuts the values off to whole bytes, as the official code does.
    Source: arXiv 2006.10029 (SimCLR v2), as used by the official implementation of NesT.
    """

    strength: typing.Annotated[float, Within(0, 1)]
    probability: typing.Annotated[float, Within(0, 1)] = 0.8
    grey_probability: typing.Annotated[float, Within(0, 1)] = 0.2
    order: typing.Literal["step", "picture"] = "step"
    rounding: typing.Literal["none", "down"] = "none"

    def __call__(self, images: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Jitters float32 images [B, H, W, 3] in [0, 1]."""
        *_, C = images.shape
        if C != 3:
            raise failures.BadInput(
                f"ColorJitter got images of {C} channels, not 3; set Inputs.color_jitter = None."
            )
        order_key, amount_key, choice_key = jax.random.split(key, 3)
        spread = jnp.array([LIGHT_SHARE] * 3 + [HUE_SHARE]) * self.strength
        amounts = spread * rng.uniform(rng.keys(amount_key, rows), (4,), low=-1.0)
        amounts = amounts[:, :, None, None, None]  # [B, 4, 1, 1, 1]
        if self.order == "picture":
            jittered = _in_own_order(images, amounts, rng.keys(order_key, rows))
        else:
            jittered = images
            for operation in jax.random.permutation(order_key, 4):
                jittered = jax.lax.switch(operation, _OPERATIONS, jittered, amounts)
                jittered = jnp.clip(jittered, 0, 1)
        draws = rng.uniform(rng.keys(choice_key, rows), (2,))[:, :, None, None, None]
        images = jnp.where(draws[:, 0] < self.probability, jittered, images)
        images = jnp.where(draws[:, 1] < self.grey_probability, grey(images), images)
        return images if self.rounding == "none" else jnp.floor(images * 255) / 255


def grey(images: jax.Array) -> jax.Array:
    """The brightness of each pixel in all three channels."""
    return jnp.broadcast_to(
        jnp.sum(images * jnp.array(GREY_WEIGHTS), axis=-1, keepdims=True), images.shape
    )


def brighten(images: jax.Array, amounts: jax.Array) -> jax.Array:
    """Multiplied by 1 + amount [B, 1, 1, 1]."""
    return images * (1 + amounts)


def contrast(images: jax.Array, amounts: jax.Array) -> jax.Array:
    """The distance from each channel's mean multiplied by 1 + amount [B, 1, 1, 1]."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return mean + (images - mean) * (1 + amounts)


def saturate(images: jax.Array, amounts: jax.Array) -> jax.Array:
    """The distance from white of the same brightest channel multiplied by 1 + amount."""
    brightest = images.max(axis=-1, keepdims=True)
    span = brightest - images.min(axis=-1, keepdims=True)
    # The saturation span / brightest ends at 1, where the darkest channel is 0.
    factor = jnp.minimum(1 + amounts, brightest / jnp.maximum(span, 1e-9))
    return brightest - (brightest - images) * factor


def turn_hue(images: jax.Array, amounts: jax.Array) -> jax.Array:
    """The hue moved by the amount [B, 1, 1, 1] of the circle; saturation and value stay."""
    brightest, darkest = images.max(axis=-1), images.min(axis=-1)
    span = brightest - darkest
    r, g, b = jnp.moveaxis(images, -1, 0)
    safe = jnp.maximum(span, 1e-9)
    sextant = jnp.where(
        brightest == r,
        (g - b) / safe,
        jnp.where(brightest == g, 2 + (b - r) / safe, 4 + (r - g) / safe),
    )
    turned = sextant + 6 * amounts[..., 0]

    def channel(offset: float) -> jax.Array:
        distance = jnp.mod(turned + offset, 6)
        return brightest - span * jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def _in_own_order(images: jax.Array, amounts: jax.Array, keys: jax.Array) -> jax.Array:
    """All four changes of each picture, in the order that its key [B] gives."""
    orders = jax.vmap(lambda key: jax.random.permutation(key, 4))(keys)[:, :, None, None, None]
    for position in range(4):
        changed = [operation(images, amounts) for operation in _OPERATIONS]
        chosen = [orders[:, position] == number for number in range(4)]
        images = jnp.clip(jnp.select(chosen, changed), 0, 1)
    return images


_OPERATIONS = (
    lambda images, amounts: brighten(images, amounts[:, 0]),
    lambda images, amounts: contrast(images, amounts[:, 1]),
    lambda images, amounts: saturate(images, amounts[:, 2]),
    lambda images, amounts: turn_hue(images, amounts[:, 3]),
)
