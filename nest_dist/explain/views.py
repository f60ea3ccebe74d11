"""Everything there is to see about why a model gives an image its classes."""

import functools
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from nest_dist.base import tree_paths
from nest_dist.explain import activation_map, attention, gradcat
from nest_dist.model import nest


class Views(typing.NamedTuple):
    """Views of a batch."""

    probabilities: np.ndarray  # of all classes, float32 [B, classes]
    gradcat: gradcat.GradCat  # paths and scores of `k` classes of each image
    activation: np.ndarray  # class activation maps of the last level, float32 [B, k, H, W]
    attention: tuple[np.ndarray, ...]  # that tokens receive at each level, float32 [B, H, W]


def views(
    model: nest.NesT,
    variables: Mapping[str, tree_paths.Tree],
    images: jax.Array | np.ndarray,
    classes: int | np.ndarray | None = None,
    top: int = gradcat.TOP,
    probabilities: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> Views:
    """The views of a batch in one forward and one backward pass.

    Args:
        probabilities: of logits. Other arguments and errors are those of `gradcat.gradcat`.
    """
    gradcat.require_explainable(model)
    wanted = gradcat.wanted_classes(classes, len(images), model.num_logits)
    arrays = _arrays(model, variables["params"], images, wanted, top)
    logits, chosen, scores, activation, received = arrays
    return Views(
        np.asarray(probabilities(logits)),
        gradcat.found(model, logits, chosen, scores),
        np.asarray(activation),
        tuple(np.asarray(level) for level in received),
    )


def of_image(seen: Views, row: int) -> Views:
    """The views of one image, as a batch of one."""

    def only(leaf: np.ndarray) -> np.ndarray:
        return leaf[row : row + 1]

    return jax.tree.map(only, seen)


@functools.partial(jax.jit, static_argnames=("model", "top"))
def _arrays(
    model: nest.NesT,
    params: Mapping[str, tree_paths.Tree],
    images: jax.Array,
    classes: jax.Array | None,
    top: int,
) -> tuple[jax.Array, jax.Array, list[jax.Array], jax.Array, list[jax.Array]]:
    inside, chosen, scores = gradcat.scores_of_tokens(model, params, images, classes, top)
    activation = activation_map.activation_map(model, inside, params["head"], chosen)
    grids = model.geometry().grids
    received = [attention.received(*level) for level in zip(inside.attention, grids, strict=True)]
    return inside.logits, chosen, scores, activation, received
