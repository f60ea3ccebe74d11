"""Any number of classes an image: a sigmoid for each."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.data import targets as labellings
from nest_dist.train import average_precision, objectives
from nest_dist.train.objectives import class_weights as weighting
from nest_dist.train.objectives import classification

# What mixup and CutMix mix are weights of both answers for each class, so what is unknown of one
# picture weighs nothing, and the loss of a mixed picture is the mean of two losses.


@settings.register
class MultiLabel:
    """Sigmoids over the classes, of which an image may have any number.

    The loss of an example is the sum over the classes that are known of it.

    Attributes:
        head_bias: initial bias of the head. With thousands of classes -10 starts near the small
            chance of each, where 0 starts with a loss of 0.69 for each class.
        class_weights: factors of the classes in the training loss; None weighs all alike.
        average_precision: whether the mean average precision is measured. It is exact; for that
            each process keeps 5 bytes for each class of each example of the evaluation.
    Source: arXiv 2104.10972, section 3; the bias is that of big_vision's runs on ImageNet-21k.
    """

    head_bias: typing.Annotated[float, Within(-100, 100)] = 0.0
    class_weights: weighting.ClassWeights | None = None
    average_precision: bool = True
    needs: typing.ClassVar[Mapping[str, jax.typing.DTypeLike]] = {"labels": jnp.uint8}

    def losses(
        self,
        forward: objectives.Forward,
        augment: objectives.Augment,
        batch: objectives.Batch,
        num_outputs: int,
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Sum of the sigmoid cross-entropies of each example, and the precision at one."""
        with jax.named_scope("inputs"):
            images, targets = augment(batch["image"], both_answers(batch["labels"]))
            weights = weighting.array(self.class_weights, num_outputs)
        logits = forward(images)
        right = {"precision_at_1": best_is_right(logits, batch["labels"])}
        return sigmoid_cross_entropy(logits, targets, weights), right

    def evaluate(self, outputs: jax.Array, batch: objectives.Batch) -> objectives.Metrics:
        """Loss without class weights, precision at one, and the likeliest class that is known."""
        labels = batch["labels"]
        known = jnp.where(labels == labellings.UNKNOWN, -jnp.inf, outputs)
        measured = {
            "loss": sigmoid_cross_entropy(outputs, both_answers(labels), None),
            "precision_at_1": best_is_right(outputs, labels),
            "predicted": classification.predicted(known),
        }
        if not self.average_precision:
            return measured
        real = batch["weight"][:, None] > 0
        return {
            **measured,
            "scores": outputs,
            "labels": jnp.where(real, labels, labellings.UNKNOWN).astype(jnp.uint8),
        }

    def measures(self, num_outputs: int) -> tuple[str, ...]:
        return ("loss", "precision_at_1", *[average_precision.NAME] * self.average_precision)

    def shares(self, batch: objectives.Batch, num_outputs: int) -> jax.Array:
        return jnp.float32(batch["labels"] == labellings.PRESENT)


def both_answers(labels: jax.Array) -> jax.Array:
    """Weights of "present", then of "absent", float32 [B, 2 * classes]; both 0 where unknown."""
    answers = labels == labellings.PRESENT, labels == labellings.ABSENT
    return jnp.concatenate(answers, axis=-1).astype(jnp.float32)


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Loss of each example [B], summed over the classes.

    Args:
        logits: float32 [B, classes].
        targets: as of `both_answers`, or a mean of such.
        weights: of the classes, [classes]; None for 1.
    """
    present, absent = jnp.split(targets, 2, axis=-1)
    log_chances = present * jax.nn.log_sigmoid(logits) + absent * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(log_chances if weights is None else weights * log_chances, axis=-1)


def best_is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the highest logit of the known classes belongs to the set, bool [B].

    Ties count against it, and so does a logit that is NaN. Nothing is right for an empty set.
    """

    def highest(value: int) -> jax.Array:
        return jnp.max(jnp.where(labels == value, logits, -jnp.inf), axis=-1)  # NaN if one is

    return highest(labellings.PRESENT) > highest(labellings.ABSENT)
