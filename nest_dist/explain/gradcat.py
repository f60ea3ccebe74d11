"""GradCAT: the path through the tree of blocks that speaks most for a class."""

import functools
import typing
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures, tree_paths
from nest_dist.model import inspection, nest, patching

TOP = 5


class Box(typing.NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class GradCat(typing.NamedTuple):
    """Paths and scores for `k` classes of each image.

    Attributes:
        classes: int32 [B, k].
        logits: float32 [B, k], of these classes.
        path: int32 [B, k, levels], the block chosen at each level, counted row by row in its
            grid; first level first, so that `path[..., 0]` is the leaf.
        scores: of each level, float32 [B, k, H, W]: how much more each token speaks for the class
            than the mean token, in logits.
    """

    classes: np.ndarray
    logits: np.ndarray
    path: np.ndarray
    scores: tuple[np.ndarray, ...]


def gradcat(
    model: nest.NesT,
    variables: Mapping[str, tree_paths.Tree],
    images: jax.Array | np.ndarray,
    classes: int | Sequence[int] | np.ndarray | None = None,
    top: int = TOP,
) -> GradCat:
    """Traces each class down the tree of blocks, from the last level to a block of the first.

    A token's score is the sum over its channels of feature times gradient of the class's logit,
    with features counted from the mean token of the level: what the logit would lose, to first
    order, if this were a mean token. From the last level down, the next node is the child of the
    current block whose own tokens have the largest mean score.

    The paper says less, and four things are decided by what finds an object that was planted in
    one block, in models of two and of three levels (`tests/unit/explain/test_gradcat.py`):

    - The sign. The paper prints the gradient with a minus sign and describes it as the direction of
      ascent. With plus nearly all objects are found, with minus next to none.
    - The features of a child are its own, as its level gives them. The paper's words also allow the
      quarter of the parent's tokens above it. There attention has carried what the child knows all
      over the parent: trained models of three levels then find 11 and 70 of 100 objects, not 100.
    - Features count from the mean token. What all tokens share speaks for the class, too, but says
      nothing of the place.
    - Gradients take the standard deviations in LayerNorms for constants (arXiv 2202.07304). A norm
      undoes any scaling of a token, so at the last level the plain product is zero for each; it
      finds 18 and 40 of 100 objects.

    Args:
        model: with a head.
        variables: the first argument of its `apply`.
        images: preprocessed, float32 [B, H, W, C].
        classes: one for all images, one for each [B], or several for each [B, k]; None for the
            likeliest of each image.
        top: how many of them.
    Raises:
        BadInput: if the model has no head, or a class does not exist.
    Source: arXiv 2105.12723, algorithm 1.

    Example:
        >>> import numpy as np
        >>> import nest_dist
        >>> loaded = nest_dist.load("nest_micro", num_classes=10)
        >>> images = loaded.preprocess(np.zeros((32, 32, 1), np.uint8))
        >>> found = nest_dist.gradcat(loaded.model, loaded.variables, images, classes=7)
        >>> found.path.shape, [scores.shape for scores in found.scores]
        ((1, 1, 2), [(1, 1, 8, 8), (1, 1, 4, 4)])
    """
    require_explainable(model)
    chosen = wanted_classes(classes, len(images), model.num_logits)
    logits, classes_found, scores = _scores(model, variables["params"], images, chosen, top)
    return found(model, logits, classes_found, scores)


def require_explainable(model: nest.NesT) -> None:
    """Checks that a model has classes."""
    if model.num_classes == 0:
        raise failures.BadInput("the model has no head; fine-tune it on classes first.")


def wanted_classes(
    classes: int | Sequence[int] | np.ndarray | None, num_images: int, num_classes: int
) -> np.ndarray | None:
    """The classes as int32 [B, k]; None stays None.

    Raises:
        BadInput: if one does not exist, or their number does not fit.
    """
    if classes is None:
        return None
    given = np.asarray(classes, np.int32)
    if given.ndim > 2 or (given.ndim and len(given) != num_images):
        raise failures.BadInput(
            f"classes has the shape {given.shape} for {num_images} images; give one class, one for "
            "each image [B], or several for each [B, k]."
        )
    for label in given.ravel():
        checks.in_range("a class", int(label), 0, num_classes - 1)
    given = given[:, None] if given.ndim == 1 else given
    return np.broadcast_to(given, (num_images, 1 if given.ndim == 0 else given.shape[1]))


def scores_of_tokens(
    model: nest.NesT,
    params: Mapping[str, tree_paths.Tree],
    images: jax.Array,
    classes: jax.Array | None,
    top: int,
) -> tuple[inspection.Inside, jax.Array, list[jax.Array]]:
    """The forward pass, the classes [B, k], and the scores [B, k, H, W] of each level. Pure.

    Args:
        images: float32 [B, H, W, C].
        classes: int32 [B, k]; None for the likeliest.
    """
    grids = model.geometry().grids

    def logits_and_inside(offsets: list[jax.Array]) -> tuple[jax.Array, inspection.Inside]:
        inside = inspection.forward(model, params, images, offsets, fixed_deviation=True)
        return inside.logits, inside

    tokens = jax.eval_shape(lambda: inspection.forward(model, params, images)).levels
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in tokens]
    logits, pull_back, inside = jax.vjp(logits_and_inside, zeros, has_aux=True)
    if classes is None:
        _, classes = jax.lax.top_k(logits, min(top, model.num_logits))
    one_hot = jax.nn.one_hot(classes, model.num_logits, dtype=logits.dtype)  # [B, k, classes]
    (gradients,) = jax.vmap(pull_back, in_axes=1, out_axes=1)(one_hot)
    scores = [
        _score_image(features, gradient, grid)
        for features, gradient, grid in zip(inside.levels, gradients, grids, strict=True)
    ]
    return inside, classes, scores


def found(
    model: nest.NesT, logits: jax.Array, classes: jax.Array, scores: Sequence[jax.Array]
) -> GradCat:
    """Paths from scores [B, k, H, W] of each level, with the logits [B, classes]."""
    arrays = tuple(np.asarray(level) for level in scores)
    labels = np.asarray(classes)
    return GradCat(
        labels,
        np.take_along_axis(np.asarray(logits), labels, axis=1),
        walk(arrays, model.geometry().grids),
        arrays,
    )


def walk(scores: Sequence[np.ndarray], grids: Sequence[patching.Grid]) -> np.ndarray:
    """The block of each level with the most evidence, int32 [..., levels], first level first.

    Args:
        scores: of each level, [..., H, W] tokens.
    """
    means = [_of_blocks(level, grid) for level, grid in zip(scores, grids, strict=True)]
    row, column = _largest(means[-1])
    path = [row * grids[-1][1] + column]
    for of_level, (rows, columns) in zip(means[-2::-1], grids[-2::-1], strict=True):
        children = of_level.reshape(*row.shape, rows // 2, 2, columns // 2, 2)
        lead = np.indices(row.shape, sparse=True)
        down, right = _largest(children[(*lead, row, slice(None), column)])
        row, column = 2 * row + down, 2 * column + right
        path.append(row * columns + column)
    return np.stack(path[::-1], axis=-1).astype(np.int32)


def box(model: nest.NesT, level: int, block: int) -> Box:
    """The pixels that a block of a level covers."""
    geometry = model.geometry()
    (H, W), (rows, columns) = geometry.image_sides, geometry.grids[level]
    height, width = H // rows, W // columns
    row, column = divmod(block, columns)
    return Box(row * height, column * width, height, width)


@functools.partial(jax.jit, static_argnames=("model", "top"))
def _scores(
    model: nest.NesT,
    params: Mapping[str, tree_paths.Tree],
    images: jax.Array,
    classes: jax.Array | None,
    top: int,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    inside, classes, scores = scores_of_tokens(model, params, images, classes, top)
    return inside.logits, classes, scores


def _score_image(features: jax.Array, gradients: jax.Array, grid: patching.Grid) -> jax.Array:
    """[B, k, H, W] from features [B, T, N, C] and gradients [B, k, T, N, C]."""
    features = features - features.mean((1, 2), keepdims=True)
    products = jnp.einsum(
        "btnc,bktnc->bktn", features, gradients, preferred_element_type=jnp.float32
    )
    return patching.to_map(products, grid)


def _of_blocks(scores: np.ndarray, grid: patching.Grid) -> np.ndarray:
    """Means [..., rows, columns] of the tokens of each block."""
    *lead, H, W = scores.shape
    rows, columns = grid
    return scores.reshape(*lead, rows, H // rows, columns, W // columns).mean((-3, -1))


def _largest(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the largest number of [..., rows, columns]."""
    *lead, _, columns = means.shape
    return np.divmod(means.reshape(*lead, -1).argmax(-1), columns)
