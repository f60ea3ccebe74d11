"""A trained model beside the one that learns: it sees the same images, and is not changed."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from nest_dist.train import inputs, objectives, state


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a teacher computes; its parameters are an argument of the step, no part of a state."""

    model: typing.Any  # gives outputs of images [B, H, W, C]
    normalize: inputs.Normalize
    normalized: inputs.Normalize  # how the images of the model that learns are normalized
    columns: tuple[int, ...]  # its output for each class of the data

    def __call__(self, params: state.Params, images: jax.Array) -> jax.Array:
        """Outputs float32 [B, classes], without gradients, of images as the learner has them."""
        if self.normalize != self.normalized:
            images = self.normalize(self.normalized.values(images))
        with jax.named_scope("teacher"):
            outputs = self.model.apply({"params": params}, images)
        if self.columns != tuple(range(outputs.shape[-1])):
            outputs = outputs[:, jnp.asarray(self.columns)]
        return jax.lax.stop_gradient(outputs)

    def beside(self, forward: objectives.Forward, params: state.Params) -> objectives.Forward:
        """The outputs of `forward`, then those of the teacher, for the same images."""

        def both(images: jax.Array) -> jax.Array:
            return jnp.concatenate([forward(images), self(params, images)], axis=-1)

        return both
