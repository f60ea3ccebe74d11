"""The objectives of training: one file for each, behind the interface that the step uses."""

import typing
from collections.abc import Callable, Mapping

import jax

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# The model's outputs [B, num_outputs], float32, of normalized images [B, H, W, C].
Forward = Callable[[jax.Array], jax.Array]
# From uint8 images and targets to float32 images, the model's inputs, and their targets.
Augment = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Objective(typing.Protocol):
    """Loss and metrics of a task; the step does not know whether its targets are classes.

    Attributes:
        needs: the arrays of a batch beside "image", by name, with their types; shapes are those of
            `data/targets.py`.
        head_bias: initial bias of the head.
    """

    needs: typing.ClassVar[Mapping[str, jax.typing.DTypeLike]]

    @property
    def head_bias(self) -> float: ...

    def losses(
        self, forward: Forward, augment: Augment, batch: Batch, num_outputs: int
    ) -> tuple[jax.Array, Metrics]:
        """Loss of each example [B], float32, and its values by metric, [B] each.

        Args:
            forward: the model in training. Where a teacher is there, its outputs follow those of
                the model: [B, 2 * num_outputs].
            augment: computes the model's inputs and changes the targets with them.
            batch: a batch or a microbatch; the loss of an example is the same in both.
            num_outputs: of the model's head.
        """

    def evaluate(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Values [B] of each example: "loss" float32, "predicted", and hits as bool by metric.

        With "scores" float32 and "labels" uint8, [B, num_outputs] both, the mean average precision
        is measured, too (`train/average_precision.py`).

        Args:
            outputs: of the model, [B, num_outputs].
            batch: as it was stored.
        """

    def measures(self, num_outputs: int) -> tuple[str, ...]:
        """The names of what evaluation measures, without "eval/"."""

    def shares(self, batch: Batch, num_outputs: int) -> jax.Array:
        """The classes of each picture, 0 or 1, float32 [B, num_outputs], for pages of pictures."""
