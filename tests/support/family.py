"""The members of the NesT family: the six published ones, and a small one of each kind."""

import functools
import pathlib
import typing

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist import NesT
from nest_dist.train import optimizer, step
from nest_dist.train.objectives import classification

GIN = pathlib.Path(__file__).parents[2] / "gin" / "model"

PUBLISHED = {
    "nest_tiny": 17_057_608,
    "nest_small": 38_351_176,
    "nest_base": 67_723_368,
    "cifar_nest_tiny": 6_006_730,
    "cifar_nest_small": 22_849_930,
    "cifar_nest_base": 89_050_378,
}

# One of each kind, as small as shows it: the image, the CIFAR and the multi-block variant.
SMALL = {
    "multi_head": {
        "image_size": 32,
        "patch_size": 4,
        "dim": 12,
        "heads": 3,
        "num_hierarchies": 2,
        "block_repeats": (1, 1),
        "num_classes": 5,
    },
    "multi_query": {
        "image_size": 16,
        "patch_size": 1,
        "dim": 12,
        "heads": 3,
        "num_hierarchies": 3,
        "block_repeats": (1, 1, 1),
        "num_classes": 5,
        "widen": False,
        "multi_query": True,
    },
    "wide_image": {
        "image_size": (16, 32),
        "patch_size": 2,
        "dim": 8,
        "heads": 2,
        "num_hierarchies": 2,
        "block_repeats": (1, 1),
        "num_classes": 5,
        "num_channels": 1,
        "block_side": 2,
        "gelu": "exact",
    },
}

# What makes each published model smaller and leaves its levels, heads and grids of blocks.
NARROW = {
    "nest_tiny": {"image_size": 32, "dim": 12, "block_repeats": (1, 1, 1)},
    "nest_small": {"image_size": 32, "dim": 12, "block_repeats": (1, 1, 2)},
    "nest_base": {"image_size": 32, "dim": 16, "block_repeats": (1, 1, 2)},
    "cifar_nest_tiny": {"image_size": 16, "dim": 12, "block_repeats": (1, 1, 1, 1)},
    "cifar_nest_small": {"image_size": 16, "dim": 24, "block_repeats": (1, 1, 1, 1)},
    "cifar_nest_base": {"image_size": 16, "dim": 48, "block_repeats": (1, 1, 1, 1)},
}
# The other published models have the structure of these, with more layers and heads.
TINY = ("nest_tiny", "cifar_nest_tiny")
MEMBERS = (
    *SMALL,
    *(
        pytest.param(name, marks=pytest.mark.medium if name in TINY else pytest.mark.slow)
        for name in NARROW
    ),
)


def member(name: str) -> NesT:
    """A model of each kind and of each published structure, small enough to try laws on."""
    if name in SMALL:
        return small(name)
    return published(name, num_classes=5, stochastic_depth=0.0, **NARROW[name])


def published(name: str, **changes: object) -> NesT:
    """A published model with its own number of classes, as its gin file describes it."""
    model = _published(name)
    return model.clone(**changes) if changes else model


@functools.cache
def _published(name: str) -> NesT:
    classes = 10 if name.startswith("cifar") else 1000
    with gin.config.unlock_config():
        gin.clear_config()
        gin.parse_config_file(str(GIN / f"{name}.gin"))
        gin.bind_parameter("num_classes/macro.value", classes)
        model = gin.get_configurable("NesT")()
        gin.clear_config()
    return model


def small(name: str, **changes: object) -> NesT:
    """A small model of one kind."""
    return NesT(**{**SMALL[name], **changes})


@functools.cache
def shapes(model: NesT) -> typing.Any:
    """Names, shapes and types of the parameters, without computing anything."""
    H, W = model.geometry().image_sides
    images = jnp.zeros((1, H, W, model.num_channels))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def random_params(model: NesT, seed: int = 0) -> typing.Any:
    """Parameters of the size that training reaches.

    The first values of a model would hide faults: its biases are 0 and its branches close to 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[typing.Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


class AsTheyAre:
    """In place of `Inputs`: images that are float32 already."""

    mixing_group = 1

    def __call__(self, images, targets, **_):
        return images, targets


def training_step(model, layout):
    """The step of a benchmark: classification of images as they are, by AdamW."""
    return step.TrainStep(
        model=model,
        inputs=AsTheyAre(),
        objective=classification.Classification(),
        optimizer=optimizer.AdamW(1e-3, 0).build(lambda _: 1e-3, lambda name: 1.0),
        learning_rate=lambda _: jnp.float32(1e-3),
        sharding=layout,
        seed=0,
    )
