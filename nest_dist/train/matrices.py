"""Updates of parameters as matrices from their inputs to their outputs, as Muon needs them."""

import math

import jax
import jax.numpy as jnp

from nest_dist.model import parameters

# Of the quintic iteration, chosen for the steepest slope at 0: singular values end in 0.7 to 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# The root mean square of AdamW's updates.
_TYPICAL_RMS = 0.2


def orthogonalized(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
    """The nearest orthogonal matrix, roughly, of a typical root mean square.

    Source: Jordan et al. 2024, "Muon", five iterations of Newton and Schulz; arXiv
        2502.16982, section 2.2, for the factor.
    """
    inputs = math.prod(update.shape[: parameters.num_input_axes(name, update.ndim)])
    matrix = update.reshape(inputs, -1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (jnp.linalg.norm(x) + 1e-8)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.T if tall else x
    return (_TYPICAL_RMS * math.sqrt(max(matrix.shape)) * x).reshape(update.shape)
