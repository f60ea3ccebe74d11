"""One class an image: softmax cross-entropy."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.train import objectives, ranks
from nest_dist.train.objectives import class_weights as weighting

# The prediction if a logit is NaN.
NO_CLASS = -1


class OneClass:
    """What objectives share whose images have one class each."""

    head_bias: typing.ClassVar[float] = 0.0
    needs: typing.ClassVar[Mapping[str, jax.typing.DTypeLike]] = {"label": jnp.int32}

    def evaluate(self, outputs: jax.Array, batch: objectives.Batch) -> objectives.Metrics:
        """Loss without smoothing, whether the label is in the top 1 and 5, and the prediction.

        Of five classes or fewer every label is in the top 5, which is left out then.
        """
        labels, num_classes = batch["label"], outputs.shape[-1]
        targets = smoothed_targets(labels, num_classes, 0.0)
        tops = {f"top_{k}": in_top(outputs, labels, k) for k in _tops(num_classes)}
        return {"loss": cross_entropy(outputs, targets), **tops, "predicted": predicted(outputs)}

    def measures(self, num_outputs: int) -> tuple[str, ...]:
        return ("loss", *(f"top_{k}" for k in _tops(num_outputs)))

    def shares(self, batch: objectives.Batch, num_outputs: int) -> jax.Array:
        return jax.nn.one_hot(batch["label"], num_outputs)


@settings.register
class Classification(OneClass):
    """Softmax over the classes, of which an image has one.

    Attributes:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        class_weights: factors of the classes in the training loss, whose mean over a batch is not
            divided by them; None weighs all alike.
    Source: arXiv 1512.00567, section 7.
    """

    label_smoothing: typing.Annotated[float, Within(0, 1, open_high=True)] = 0.0
    class_weights: weighting.ClassWeights | None = None

    def losses(
        self,
        forward: objectives.Forward,
        augment: objectives.Augment,
        batch: objectives.Batch,
        num_outputs: int,
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Cross-entropy of each example, and whether its label has the highest logit."""
        with jax.named_scope("inputs"):
            targets = smoothed_targets(batch["label"], num_outputs, self.label_smoothing)
            images, targets = augment(batch["image"], targets)
            weights = weighting.array(self.class_weights, num_outputs)
        logits = forward(images)
        losses = cross_entropy(logits, targets if weights is None else weights * targets)
        return losses, {"accuracy": in_top(logits, batch["label"], 1)}


def _tops(num_classes: int) -> tuple[int, ...]:
    return (1, 5) if num_classes > 5 else (1,)


def smoothed_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Distributions [B, num_classes]: 1 - smoothing on the label [B], the rest spread over all."""
    hard = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return hard * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss of each example [B], from float32 logits and target distributions [B, classes]."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def in_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the `k` highest logits, bool [B].

    Ties count against the label, and so does each logit that is NaN.
    """
    return ranks.of_label(logits, labels) <= k


def predicted(logits: jax.Array) -> jax.Array:
    """The class of the highest logit, int32 [B]; `NO_CLASS` where any logit is NaN."""
    # argmax gives the class of the first NaN.
    return jnp.where(jnp.isnan(logits).any(axis=-1), NO_CLASS, jnp.argmax(logits, axis=-1))
