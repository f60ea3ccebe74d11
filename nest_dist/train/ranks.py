"""The rank of the label among the logits."""

import jax
import jax.numpy as jnp
import numpy as np

LAST = np.iinfo(np.int32).max  # the rank of a label whose logit is NaN, or left out


def of_label(logits: jax.Array, labels: jax.Array, among: np.ndarray | None = None) -> jax.Array:
    """The rank of each label, int32 [B], from 1.

    Ties count against the label, and so does each logit that is NaN.

    Args:
        logits: [B, classes].
        labels: [B].
        among: the labels of the classes that are compared; None for all.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    compared = logits if among is None else logits[:, among]
    # NaN is neither below nor above: a count of what is above would take it for below.
    rank = jnp.sum(~(compared < of_label), axis=-1, dtype=jnp.int32)
    known = ~jnp.isnan(of_label[:, 0])
    if among is not None:
        known &= jnp.isin(labels, among)
    return jnp.where(known, rank, LAST)
