"""The objectives of training: one file for each, behind the interface that the step uses."""

import typing
from collections.abc import Callable, Mapping

import jax

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# The model's outputs [B, num_outputs], float32, of normalised images [B, H, W, C].
Forward = Callable[[jax.Array], jax.Array]
# From uint8 images and targets to float32 images, the model's inputs, and their targets.
Augment = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Objective(typing.Protocol):
    """Loss and metrics of a task; the step does not know whether its targets are classes.

    Attributes:
        needs: the arrays [B] of a batch beside "image", by name, with their types.
    """

    needs: typing.ClassVar[Mapping[str, jax.typing.DTypeLike]]

    def losses(
        self, forward: Forward, augment: Augment, batch: Batch, num_outputs: int
    ) -> tuple[jax.Array, Metrics]:
        """Loss of each example [B], float32, and its values by metric, [B] each.

        Args:
            forward: the model in training.
            augment: computes the model's inputs and changes the targets with them.
            batch: a batch or a microbatch; the loss of an example is the same in both.
            num_outputs: of the model's head.
        """

    def evaluate(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Values [B] of each example: "loss" float32, "predicted", and hits as bool by metric.

        Args:
            outputs: of the model, [B, num_outputs].
            batch: as it was stored.
        """
