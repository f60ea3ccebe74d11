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
    order, if this were a mean token. At each level from the last, the scores of the current block
    are averaged over its four partitions, and the one with the largest mean is the block of the
    level below.

    The paper says less, and three things are decided by what finds an object that was planted in
    one block (`tests/unit/explain/test_gradcat.py`):

    - The sign. The paper prints the gradient with a minus sign and describes it as the direction of
      ascent. With plus nearly all objects are found, with minus next to none.
    - Features count from the mean token. What all tokens share speaks for the class, too, but says
      nothing of the place; with it the path follows the background.
    - Gradients take the standard deviations in LayerNorms for constants (arXiv 2202.07304). A norm
      undoes any scaling of a token, so at the last level the plain product is zero for each.

    This is tested on a model of two levels. In one of three levels, trained on such pictures until
    its logits hardly differed from picture to picture, the path found 12 of 100 objects. So compare
    it with the maps beside it.

    Args:
        model: with a head.
        variables: the first argument of its `apply`.
        images: preprocessed, float32 [B, H, W, C].
        classes: one for all images, one for each [B], or several for each [B, k]; None for the
            likeliest of each image.
        top: how many of them.
    Raises:
        BadInput: if the model has no head or blocks of one token, or a class does not exist.
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
    """Checks that a model has classes, and blocks with partitions."""
    if model.num_classes == 0:
        raise failures.BadInput("the model has no head; fine-tune it on classes first.")
    if model.geometry().block_side < 2 and model.num_hierarchies > 1:
        raise failures.BadInput(
            "the model has blocks of one token, which have no partitions to choose from; explain a "
            "model with a larger NesT.block_side."
        )


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
    geometry = model.geometry()
    arrays = tuple(np.asarray(level) for level in scores)
    labels = np.asarray(classes)
    return GradCat(
        labels,
        np.take_along_axis(np.asarray(logits), labels, axis=1),
        walk(arrays, geometry.grids, geometry.block_side),
        arrays,
    )


def walk(
    scores: Sequence[np.ndarray], grids: Sequence[patching.Grid], block_side: int
) -> np.ndarray:
    """The block of each level with the most evidence, int32 [..., levels], first level first.

    Args:
        scores: of each level, [..., H, W] tokens.
    """
    *_, (rows, columns) = grids
    top = scores[-1]
    means = top.reshape(*top.shape[:-2], rows, block_side, columns, block_side).mean((-3, -1))
    row, column = _largest(means)
    path = [row * columns + column]
    for level in range(len(grids) - 1, 0, -1):
        half = _halves(block_side)
        blocks = scores[level].reshape(
            *scores[level].shape[:-2], grids[level][0], block_side, grids[level][1], block_side
        )
        quarters = np.einsum("...rncm,qn,pm->...rcqp", blocks, half, half)
        lead = np.indices(row.shape, sparse=True)
        down, right = _largest(quarters[(*lead, row, column)])
        row, column = 2 * row + down, 2 * column + right
        path.append(row * grids[level - 1][1] + column)
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


def _halves(block_side: int) -> np.ndarray:
    """Weights [2, block_side] of the means over both halves; a middle token belongs to both."""
    first = np.clip(block_side / 2 - np.arange(block_side), 0, 1)
    return np.stack([first, first[::-1]]) / (block_side / 2)


def _largest(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the largest number of [..., rows, columns]."""
    *lead, _, columns = means.shape
    return np.divmod(means.reshape(*lead, -1).argmax(-1), columns)
