"""Masked images: the model sees some squares of a picture and paints the others."""

import math
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import failures, rng, settings
from nest_dist.base.checks import Within
from nest_dist.model import linen, patching
from nest_dist.sharding import rules
from nest_dist.train import inputs, objectives
from nest_dist.train.objectives import pretext


@settings.register
class MaskedImages(pretext.Pretext):
    """Pixels of hidden squares from those that are visible; L1 on hidden pixels alone.

    Hidden patches become a learnt token before the first level. One linear layer paints the square
    of pixels under each token of the last level. The squares are chosen anew for each example of
    each step; in evaluation they are the same every time.

    Attributes:
        unit: side in pixels of the squares that are hidden as a whole; a multiple of the patch that
            divides the sides of an image.
        share: of the squares that are hidden, in (0, 1), rounded up.
    Source: SimMIM, arXiv 2111.09886, section 3.
    """

    unit: typing.Annotated[int, Within(1, 2**16)] = 32
    share: typing.Annotated[float, Within(0, 1, open_low=True, open_high=True)] = 0.6
    spoilt_by: typing.ClassVar[tuple[str, ...]] = ("mixing", "random_erasing")
    axes: typing.ClassVar[Mapping[str, rules.Axes]] = {
        "*/objective/mask_token": ("embed",),
        "*/objective/decoder/kernel": ("embed", None),
        "*/objective/decoder/bias": (None,),
    }

    def init(self, model: typing.Any, key: jax.Array) -> pretext.Params:
        """The token [C], and the layer from a token of the last level to its square of pixels."""
        token_key, kernel_key = jax.random.split(key)
        first, *_ = widths = model.widths()
        pixels = _square(model) ** 2 * model.num_channels
        return {
            "mask_token": linen.kernel_init(token_key, (first,)),
            "decoder": {
                "kernel": linen.kernel_init(kernel_key, (widths[-1], pixels)),
                "bias": jnp.zeros(pixels),
            },
        }

    def require_fitting(self, model: typing.Any) -> None:
        """Raises `BadInput` for squares that do not tile an image, or if all are hidden."""
        H, W = model.geometry().image_sides
        patch = model.patch_size
        fitting = [
            unit
            for unit in range(patch, min(H, W) + 1, patch)
            if H % unit == 0 == W % unit and unit**2 < H * W
        ]
        if self.unit not in fitting:
            raise failures.BadInput(
                f"MaskedImages.unit is {self.unit}; squares of patches of {patch} pixels that tile "
                f"images of {H} x {W} have sides of {', '.join(map(str, fitting)) or 'none'}: set "
                "it to one of them."
            )
        hidden, squares = self._count(H, W)
        if hidden == squares:
            raise failures.BadInput(
                f"MaskedImages.share is {self.share}, which hides all {squares} squares of an "
                f"image; set it to at most {(squares - 1) / squares:.3g}."
            )

    def losses(
        self,
        network: pretext.Network,
        augment: inputs.Inputs,
        batch: objectives.Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Mean error of the hidden pixels of each example, in standard deviations."""
        images = pretext.augmented(augment, batch["image"], key, batch["row"])
        hidden = self.hidden(network.model, jax.random.fold_in(key, pretext.OF_TASK), batch["row"])
        return self._errors(network, images, hidden, batch["row"]), {}

    def evaluate(
        self, network: pretext.Network, images: jax.Array, batch: objectives.Batch
    ) -> objectives.Metrics:
        """The same without augmentation, each row of a batch with squares of its own."""
        rows = jnp.arange(len(images))
        hidden = self.hidden(network.model, jax.random.key(0), rows)
        return {"loss": self._errors(network, images, hidden, rows)}

    def pictures(self, network: pretext.Network, images: jax.Array) -> jax.Array:
        """The image, what the model sees of it, and the same with what it paints."""
        rows = jnp.arange(len(images))
        hidden = self.hidden(network.model, jax.random.key(0), rows)
        mask = _pixels_of(network.model, hidden)[..., None]
        painted = self._painted(network, images, hidden, rows)
        seen, completed = jnp.where(mask, 0, images), jnp.where(mask, painted, images)
        return jnp.concatenate([images, seen, completed], axis=2)

    def hidden(self, model: typing.Any, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Which patches are hidden, bool [B, h, w], by a key and rows [B] of the global batch."""
        H, W = model.geometry().image_sides
        count, squares = self._count(H, W)
        order = jax.vmap(lambda key: jax.random.permutation(key, squares))(rng.keys(key, rows))
        units = (order < count).reshape(len(rows), H // self.unit, W // self.unit)
        return _enlarged(units, self.unit // model.patch_size)

    def _errors(
        self, network: pretext.Network, images: jax.Array, hidden: jax.Array, rows: jax.Array
    ) -> jax.Array:
        painted = self._painted(network, images, hidden, rows)
        errors = jnp.abs(painted - images).mean(axis=-1)  # [B, H, W]
        masked = jnp.where(_pixels_of(network.model, hidden), errors, 0)
        _, H, W = errors.shape
        count, _ = self._count(H, W)
        return masked.sum(axis=(1, 2)) / (count * self.unit**2)

    def _painted(
        self, network: pretext.Network, images: jax.Array, hidden: jax.Array, rows: jax.Array
    ) -> jax.Array:
        """Images [B, H, W, C] of which all pixels are painted."""
        own, side = network.own(self.axes), _square(network.model)
        tokens = network(images, rows, (hidden, own["mask_token"]))
        B, h, w, _ = tokens.shape
        with jax.named_scope("decoder"):
            squares = tokens @ own["decoder"]["kernel"] + own["decoder"]["bias"]
            squares = squares.reshape(B, h * w, side * side, -1)  # [B, T, N, C]
            painted = patching.to_image(squares, (h, w))
        return rules.constrain(painted, "batch", "rows", None, None)

    def _count(self, H: int, W: int) -> tuple[int, int]:
        """Squares of an image that are hidden, and all; not rounded up for a rounding error."""
        squares = (H // self.unit) * (W // self.unit)
        return math.ceil(self.share * squares - 1e-9), squares


def _square(model: typing.Any) -> int:
    """Side in pixels of the square under a token of the last level."""
    return int(model.patch_size * 2 ** (model.num_hierarchies - 1))


def _pixels_of(model: typing.Any, hidden: jax.Array) -> jax.Array:
    """Which pixels are hidden, bool [B, H, W]."""
    return _enlarged(hidden, model.patch_size)


def _enlarged(mask: jax.Array, times: int) -> jax.Array:
    return jnp.repeat(jnp.repeat(mask, times, axis=1), times, axis=2)
