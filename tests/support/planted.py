"""Pictures with an object in one known block, and a model that has learnt to name it."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nest_dist import NesT

SIDE, OBJECT_SIDE = 32, 8
CLASSES = 3
STEPS, WARMUP, BATCH, RATE = 200, 20, 32, 4e-3
NOISE = 0.1
# A ball: round, and brightest in the middle.
_ACROSS = np.abs(np.arange(OBJECT_SIDE) - (OBJECT_SIDE - 1) / 2)
OBJECT = 3 * np.clip(1 - np.hypot(*np.meshgrid(_ACROSS, _ACROSS)) / 5, 0, 1).astype(np.float32)


class Learnt(typing.NamedTuple):
    """A model of a number of levels, and its weights."""

    model: NesT
    variables: dict[str, typing.Any]


def pictures(
    rng: np.random.Generator, count: int, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalized images [B, 32, 32, 3], their labels, and the leaf with the object, row by row.

    The object is a ball in the middle of a leaf; its colour is its class.
    """
    leaves_per_row = 2 ** (levels - 1)
    leaf_side = SIDE // leaves_per_row
    images = NOISE * rng.standard_normal((count, SIDE, SIDE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count)
    leaves = rng.integers(0, leaves_per_row**2, count)
    for image, label, leaf in zip(images, labels, leaves, strict=True):
        top, left = (
            leaf_side * each + (leaf_side - OBJECT_SIDE) // 2
            for each in divmod(int(leaf), leaves_per_row)
        )
        image[top : top + OBJECT_SIDE, left : left + OBJECT_SIDE, label] += OBJECT
    return images, labels.astype(np.int32), leaves


def painted(images: np.ndarray, leaves: np.ndarray, levels: int) -> np.ndarray:
    """The images, one leaf of each in the colour of the background."""
    leaves_per_row = 2 ** (levels - 1)
    side = SIDE // leaves_per_row
    images = images.copy()
    for image, leaf in zip(images, leaves, strict=True):
        row, column = (side * each for each in divmod(int(leaf), leaves_per_row))
        image[row : row + side, column : column + side] = 0
    return images


@functools.cache
def learnt(levels: int) -> Learnt:
    """A NesT after a short training on such pictures."""
    model = NesT(
        image_size=SIDE,
        patch_size=4,
        dim=16,
        heads=2,
        num_hierarchies=levels,
        block_repeats=(1,) * levels,
        num_classes=CLASSES,
    )
    rng = np.random.default_rng(0)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    # Without a warm-up, a model of three levels does not tell the classes apart in so few steps.
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, RATE, WARMUP, STEPS))
    state = optimizer.init(params)

    @jax.jit  # a loop inside of it would make XLA's convolutions on a CPU slow
    def train(params, state, images, labels):
        def loss(params):
            logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        images, labels, _ = pictures(rng, BATCH, levels)
        params, state = train(params, state, images, labels)
    return Learnt(model, {"params": params})
