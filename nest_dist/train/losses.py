"""Cross-entropy against class distributions, and how often the best guess is right."""

import jax
import jax.numpy as jnp


def smoothed_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Class distributions [B, classes]: 1 - smoothing on the label, the rest spread over all.

    Args:
        labels: int32 [B].
        num_classes: classes.
        smoothing: in [0, 1).
    Source: arXiv 1512.00567, section 7.
    """
    hard = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return hard * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss of each example [B], from float32 logits and target distributions [B, classes]."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def in_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the `k` highest logits, bool [B]; ties count against it."""
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    not_below = jnp.sum(logits >= of_label, axis=-1)  # includes the label itself
    return not_below <= k
