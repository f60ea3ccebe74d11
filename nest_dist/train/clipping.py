"""Clipping of gradients, before the optimizer sees them. Nothing of it lies in a checkpoint."""

import typing

import jax
import jax.numpy as jnp
import optax

from nest_dist.base import settings, tree_paths
from nest_dist.base.checks import Within
from nest_dist.model import parameters

Limit = typing.Annotated[float, Within(0, open_low=True)]


class Clipping(typing.Protocol):
    """A clipping as gin configures it."""

    def __call__(self, grads: tree_paths.Tree, params: tree_paths.Tree) -> tree_paths.Tree:
        """The gradients, none larger than before."""


@settings.register
class ClipByGlobalNorm:
    """Gradients are scaled together where their norm, over all parameters, exceeds a limit.

    Attributes:
        limit: of the norm.
    Source: arXiv 1211.5063, algorithm 1.
    """

    limit: Limit

    def __call__(self, grads: tree_paths.Tree, params: tree_paths.Tree) -> tree_paths.Tree:
        # Where the norm is infinite the gradients become NaN, which NonFinite.policy treats.
        scale = self.limit / jnp.maximum(optax.tree.norm(grads), self.limit)
        return jax.tree.map(lambda grad: scale * grad, grads)


@settings.register
class ClipByValue:
    """Each element of a gradient is moved into [-limit, limit].

    Attributes:
        limit: of the absolute value.
    """

    limit: Limit

    def __call__(self, grads: tree_paths.Tree, params: tree_paths.Tree) -> tree_paths.Tree:
        return jax.tree.map(lambda grad: jnp.clip(grad, -self.limit, self.limit), grads)


@settings.register
class AdaptiveClipping:
    """The gradient of each unit is scaled to at most a share of the unit's parameters, by norms.

    A unit is one output of a matrix or a convolution; a bias or scale is one as a whole.

    Attributes:
        share: of the norm of the parameters; 0.01 in the paper for large batches.
        smallest_norm: of a unit's parameters; counts where theirs is smaller.
    Source: arXiv 2102.06171, section 4.1 (AGC).
    """

    share: Limit
    smallest_norm: Limit = 1e-3

    def __call__(self, grads: tree_paths.Tree, params: tree_paths.Tree) -> tree_paths.Tree:

        def clip(name: str, grad: jax.Array, param: jax.Array) -> jax.Array:
            axes = tuple(range(parameters.num_input_axes(name, grad.ndim)))

            def norm(x: jax.Array) -> jax.Array:
                return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))

            limit = self.share * jnp.maximum(norm(param), self.smallest_norm)
            return grad * (limit / jnp.maximum(norm(grad), limit))

        return tree_paths.map_named(clip, grads, params)
