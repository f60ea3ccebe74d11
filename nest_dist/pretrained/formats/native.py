"""Our own format, nest_dist: the parameters of a model under their own names."""

import functools
import math
import types
import typing
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from nest_dist.base import failures, tree_paths
from nest_dist.model import linen, nest
from nest_dist.pretrained.formats import naming

MARK = "patch_embedding/kernel"
GELU: linen.Gelu = "tanh"  # the default of `NesT`, which also has the exact one
_MOST_NUMBERS = 2**46  # of a parameter; as float32, what a machine can address


def init(model: nest.NesT, key: jax.Array) -> dict[str, jax.Array]:
    """Initial parameters of a model by name."""
    H, W = model.geometry().image_sides
    images = jnp.zeros((1, H, W, model.num_channels))
    return tree_paths.flatten(model.init({"params": key}, images)["params"])


@functools.lru_cache(maxsize=8)
def shapes_of(model: nest.NesT) -> naming.Shapes:
    """Name and shape of every parameter of a model.

    Raises:
        BadInput: if one is larger than any machine's memory.
    """
    params = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in params.items()}
    for name, shape in shapes.items():
        if math.prod(shape) >= _MOST_NUMBERS:
            raise failures.BadInput(
                f"{name} would have the shape {list(shape)}, the limit is {_MOST_NUMBERS} numbers; "
                "make NesT smaller."
            )
    return types.MappingProxyType(shapes)


def entries(model: nest.NesT) -> Iterator[naming.Entry]:
    """See `naming.Naming`."""
    for name in shapes_of(model):
        yield naming.same(name, name)


def fields(shapes: naming.Shapes) -> dict[str, typing.Any]:
    """See `naming.Naming`."""
    positions = naming.numbered(shapes, "levels_{}/position_embedding")
    depths = [
        len(naming.numbered(shapes, f"levels_{level}/layers_{{}}/mlp_norm/scale"))
        for level in range(len(positions))
    ]
    heads, _ = shapes["levels_0/layers_0/attention/query/bias"]
    key_heads, _ = shapes["levels_0/layers_0/attention/key/bias"]
    return naming.fields(
        shapes[MARK],
        positions,
        shapes["levels_0/layers_0/mlp/hidden/bias"],
        block_repeats=tuple(depths),
        num_layers=sum(depths),
        heads=heads,
        multi_query=key_heads < heads,
        num_classes=shapes.get("head/bias", (0,))[0],
    )
