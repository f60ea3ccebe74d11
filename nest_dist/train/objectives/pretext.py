"""Tasks without labels, by which a model learns features; what serves the task alone stays behind.

The model has no head. What the task adds to it, such as a decoder, are parameters of the task, so
no weights that are loaded from a checkpoint have them.
"""

import abc
import dataclasses
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import tree_paths
from nest_dist.sharding import rules
from nest_dist.train import inputs, objectives

# The name of a task's parameters beside the model's.
PARAMETERS = "objective"
# Folded into the key of a run for their initial values; no step has this number.
INIT = 2**32 - 1
# Folded into the key of a step's inputs, which themselves take those before it.
OF_TASK = 3

Params = dict[str, typing.Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and its parameters, as a task applies them."""

    model: typing.Any  # without a head
    params: Mapping[str, typing.Any]  # of the model, and of the task under `PARAMETERS`
    key: jax.Array | None = None  # of what is dropped in training; None drops nothing

    def __call__(
        self,
        images: jax.Array,
        rows: jax.Array,
        masked: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Features [B, C] of normalized images; of masked ones the last level's tokens.

        Args:
            images: [B, H, W, C].
            rows: int32 [B], which with the key choose what is dropped.
            masked: see `NesT`.
        """
        training: dict[str, typing.Any] = {}
        if self.key is not None:
            training = {"train": True, "batch_rows": rows, "rngs": {"dropout": self.key}}
        return self.model.apply({"params": self.params}, images, masked=masked, **training)

    def own(self, axes: Mapping[str, rules.Axes]) -> Params:
        """The parameters of the task, gathered for use."""

        def gathered(name: str, value: jax.Array) -> jax.Array:
            return rules.gathered(value, rules.axes_of(f"{PARAMETERS}/{name}", axes)[1])

        return dict(tree_paths.map_named(gathered, self.params[PARAMETERS]))


class Pretext(abc.ABC):
    """A task without labels; those that the data have are ignored."""

    needs: typing.ClassVar[Mapping[str, jax.typing.DTypeLike]] = {}  # no arrays beside "image"
    head_bias: typing.ClassVar[float] = 0.0  # of no head
    views: typing.ClassVar[int] = 1  # images of each picture
    # Whether the loss of an example depends on the others of its batch
    of_batch: typing.ClassVar[bool] = False
    # Fields of `Inputs` that the task does not allow
    spoilt_by: typing.ClassVar[tuple[str, ...]] = ("mixing",)
    # Logical axes of the task's parameters, by name pattern
    axes: typing.ClassVar[Mapping[str, rules.Axes]]

    @abc.abstractmethod
    def init(self, model: typing.Any, key: jax.Array) -> Params:
        """The task's parameters before the first step."""

    def require_fitting(self, model: typing.Any) -> None:
        """Raises `BadInput` if the task does not fit the model's images."""
        return

    @abc.abstractmethod
    def losses(
        self, network: Network, augment: inputs.Inputs, batch: objectives.Batch, key: jax.Array
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Loss of each example [B], float32, and its values by metric, [B] each.

        Args:
            batch: a batch; a microbatch too, unless `of_batch`.
            key: of the step's inputs.
        """

    @abc.abstractmethod
    def evaluate(
        self, network: Network, images: jax.Array, batch: objectives.Batch
    ) -> objectives.Metrics:
        """ "loss" of each example, float32 [B].

        Args:
            images: [B, H, W, C], normalized.
            batch: as it was stored, with "weight".
        """

    def measures(self, num_outputs: int) -> tuple[str, ...]:
        return ("loss",)

    def shares(self, batch: objectives.Batch, num_outputs: int) -> jax.Array:
        """As of `Objective`: no class."""
        return jnp.zeros((len(next(iter(batch.values()))), num_outputs))

    @abc.abstractmethod
    def pictures(self, network: Network, images: jax.Array) -> jax.Array:
        """What evaluation sees of images [B, H, W, C], side by side: [B, H, n * W, C]."""


def augmented(
    augment: inputs.Inputs, images: jax.Array, key: jax.Array, rows: jax.Array
) -> jax.Array:
    """The model's inputs [B, H, W, C] of uint8 images."""
    with jax.named_scope("inputs"):
        inputs_of_model, _ = augment(images, jnp.zeros((len(images), 0)), key, rows)
    return inputs_of_model


def as_examples(images: jax.Array) -> jax.Array:
    """Images [B * V, H, W, C] of [B, V, H, W, C]; the views of a picture are neighbours."""
    return images.reshape(-1, *images.shape[-3:])
