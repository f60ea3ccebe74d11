"""What a loaded model says of pictures: its likeliest classes, and its features."""

import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from nest_dist.base import checks, failures, tree_paths
from nest_dist.model import nest, patching

LARGEST_BATCH = 32


class Prediction(typing.NamedTuple):
    """One class of a picture."""

    name: str
    probability: float
    label: int


def predictions(
    probabilities: Callable[[np.ndarray], jax.Array],
    images: np.ndarray,
    names: Sequence[str],
    top: int,
) -> list[list[Prediction]]:
    """The likeliest classes of each image, the likeliest first.

    Args:
        probabilities: of a batch of images; called with one size of batch.
        images: float32 [B, H, W, C].
    """
    checks.in_range("top", top, 1)
    predicted = []
    for row in in_batches(probabilities, images):
        if np.isnan(row).any():  # would sort as the least likely of all
            raise failures.BadInput(
                "the probabilities of a picture are NaN; the weights are not finite or overflow: "
                "give an earlier step or other weights."
            )
        predicted.append(likeliest(row, names, top))
    return predicted


def likeliest(row: np.ndarray, names: Sequence[str], top: int) -> list[Prediction]:
    """The classes with the highest probabilities [classes], the likeliest first."""
    order = np.argsort(-row, kind="stable")[:top]
    return [Prediction(names[label], float(row[label]), int(label)) for label in order]


def features(
    model: nest.NesT,
    variables: Mapping[str, tree_paths.Tree],
    images: np.ndarray,
    level: int | None,
) -> np.ndarray:
    """What the head receives, float32 [B, C]; or the output of a level as an image [B, H, W, C].

    Args:
        images: float32 [B, H, W, C].
        level: from 0, the first, to the last; negative ones count from the last.
    Raises:
        BadInput: if there is no such level.
    """
    levels = model.num_hierarchies
    if level is not None:
        checks.in_range("level", level, -levels, levels - 1)
        level %= levels
    headless = model.clone(num_classes=0)
    compute = functools.partial(_features, headless, variables["params"], level=level)
    return in_batches(compute, images)


def in_batches(function: Callable[[np.ndarray], jax.Array], images: np.ndarray) -> np.ndarray:
    """`function` of all images, in batches of one size, so that one is compiled.

    Args:
        function: from a batch [b, ...] to an array [b, ...].
        images: [B, ...].
    """
    B, *rest = images.shape
    size = min(B, LARGEST_BATCH)
    padding = [(0, -B % size), *([(0, 0)] * len(rest))]
    padded = np.pad(images, padding).reshape(-1, size, *rest)
    return np.concatenate([np.asarray(function(batch)) for batch in padded])[:B]


@functools.partial(jax.jit, static_argnames=("model", "level"))
def _features(
    model: nest.NesT, params: Mapping[str, tree_paths.Tree], images: jax.Array, level: int | None
) -> jax.Array:
    pooled, kept = model.apply({"params": params}, images, mutable="intermediates")
    if level is None:
        return pooled
    (blocks,) = kept["intermediates"][f"level_{level}"]
    return patching.to_image(blocks, model.geometry().grids[level])
