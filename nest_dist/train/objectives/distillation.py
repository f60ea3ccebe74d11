"""The outputs of a teacher as targets, beside the labels or without them."""

import typing

import jax
import jax.numpy as jnp

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.train import objectives
from nest_dist.train.objectives import classification


@settings.register
class Distillation(classification.OneClass):
    """Learns from a trained model, which sees the same augmented and mixed images.

    Attributes:
        teacher: its weights: a file, a workdir, or hf:OWNER/NAME of the Hugging Face Hub. It may be
            another NesT, with another normalization. A resumed run takes the same weights, which
            may have moved. Classes are compared by name.
        targets: "soft" takes its distribution over the classes, "hard" its likeliest class.
        temperature: that divides both logits before their softmax; 1 for hard targets.
        label_weight: share of the cross-entropy with the labels in the loss, in [0, 1).
        label_smoothing: of these labels, as of `Classification`.
        teacher_dtype: of the teacher's parameters and activations.
    Source: arXiv 1503.02531, section 2, with the square of the temperature; arXiv 2012.12877,
        section 4, for hard targets; arXiv 2106.05237, section 2, for the same image to both.
    """

    # Its weights say whether a run goes on with the same teacher.
    teacher: str = means(Effect.NONE, in_step=False)
    targets: typing.Literal["soft", "hard"] = "soft"
    temperature: typing.Annotated[float, Within(0, 100, open_low=True)] = 1.0
    label_weight: typing.Annotated[float, Within(0, 1, open_high=True)] = 0.0
    label_smoothing: typing.Annotated[float, Within(0, 1, open_high=True)] = 0.0
    teacher_dtype: typing.Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.targets == "hard" and self.temperature != 1:
            raise failures.BadInput(
                f"Distillation.temperature is {self.temperature}, but Distillation.targets is "
                "'hard', which has no temperature; set it to 1 or the targets to 'soft'."
            )
        if self.label_smoothing and not self.label_weight:
            raise failures.BadInput(
                f"Distillation.label_smoothing is {self.label_smoothing}, but "
                "Distillation.label_weight is 0, which leaves out labels; set one of them."
            )

    def losses(
        self,
        forward: objectives.Forward,
        augment: objectives.Augment,
        batch: objectives.Batch,
        num_outputs: int,
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Loss of each example, whether its label wins, and whether the teacher's class does."""
        with jax.named_scope("inputs"):
            shares = classification.smoothed_targets(
                batch["label"], num_outputs, self.label_smoothing
            )
            images, shares = augment(batch["image"], shares)
        logits, taught = jnp.split(forward(images), 2, axis=-1)
        assert logits.shape[-1] == num_outputs
        losses = self._from_teacher(logits, taught)
        if self.label_weight:
            of_labels = classification.cross_entropy(logits, shares)
            losses = (1 - self.label_weight) * losses + self.label_weight * of_labels
        return losses, {
            "accuracy": classification.in_top(logits, batch["label"], 1),
            "agreement": classification.in_top(logits, jnp.argmax(taught, axis=-1), 1),
        }

    def _from_teacher(self, logits: jax.Array, taught: jax.Array) -> jax.Array:
        if self.targets == "hard":
            return classification.cross_entropy(logits, likeliest(taught))
        return soft_loss(logits, taught, self.temperature)


def soft_loss(logits: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """Kullback-Leibler divergence from the teacher's distribution, times temperature squared, [B].

    So its gradient keeps its size at any temperature.
    """
    log_taught = jax.nn.log_softmax(taught / temperature)
    log_learnt = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_taught) * (log_taught - log_learnt), axis=-1)


def likeliest(logits: jax.Array) -> jax.Array:
    """1 for the highest logit, 0 for the others, [B, classes]; NaN where a logit is NaN."""
    chosen = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    # A teacher that gives NaN must not pass for one that gives a class.
    return jnp.where(jnp.isnan(logits).any(axis=-1, keepdims=True), jnp.nan, chosen)
