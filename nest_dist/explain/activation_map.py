"""Class activation maps of the last level."""

import jax
import jax.numpy as jnp

from nest_dist.model import inspection, nest, patching


def activation_map(
    model: nest.NesT, inside: inspection.Inside, head: dict[str, jax.Array], classes: jax.Array
) -> jax.Array:
    """What each token of the last level adds to a logit: float32 [B, k, H, W].

    Its mean is the logit, to rounding: the head is linear and sees the mean of the tokens.

    Args:
        head: kernel [C, classes] and bias [classes].
        classes: int32 [B, k].
    Source: arXiv 1512.04150, equation 2; the bias is spread over all tokens.
    """
    kernel = head["kernel"].T[classes]  # [B, k, C]
    added = jnp.einsum("btnc,bkc->bktn", inside.normalized, kernel)
    added += head["bias"][classes][..., None, None]
    return patching.to_map(added, model.geometry().grids[-1])
