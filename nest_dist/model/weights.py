"""Weights of the official format, of timm's and of ours, exchanged one for one.

They are flat here: {"levels_0/position_embedding": array}. Nothing is computed with them; they are
only moved, split and joined, so that going there and back gives the same bytes.
"""

import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures, names
from nest_dist.model import encoder, nest, tables

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Format = typing.Literal["nest_dist", "official", "timm"]
FORMATS: tuple[Format, ...] = typing.get_args(Format)

# A name that every model of a format has, and no other format.
_MARKS: Mapping[Format, str] = {
    "nest_dist": "patch_embedding/kernel",
    "official": "PatchEmbedding_0/Conv_0/kernel",
    "timm": "patch_embed.proj.weight",
}
# What the code computes that a format belongs to; ours also has the other one.
GELU: Mapping[Format, encoder.Gelu] = {"nest_dist": "tanh", "official": "tanh", "timm": "exact"}
_LISTED_NAMES = 5
_MOST_NUMBERS = 2**46  # of a parameter; as float32, what a machine can address

# What two models have to share for the weights of one to serve the other; the image, the blocks
# and the classes may differ.
ARCHITECTURE = (
    "patch_size",
    "dim",
    "heads",
    "num_hierarchies",
    "block_repeats",
    "num_channels",
    "mlp_ratio",
    "widen",
    "multi_query",
)


def format_of(arrays: Mapping[str, typing.Any]) -> Format:
    """The format that these names belong to.

    Raises:
        BadInput: if they belong to none.
    """
    for form, mark in _MARKS.items():
        if mark in arrays:
            return form
    first = next(iter(arrays), "nothing")
    raise failures.BadInput(
        f"the weights are not those of a NesT: there is no {' or '.join(_MARKS.values())} among "
        f"their {len(arrays)} names, the first of which is {first}; give a NesT checkpoint."
    )


@functools.lru_cache(maxsize=8)
def shapes_of(model: nest.NesT) -> Shapes:
    """Name and shape of every parameter of a model.

    Raises:
        BadInput: if one is larger than any machine's memory.
    """
    H, W = model.geometry().image_sides
    images = jax.ShapeDtypeStruct((1, H, W, model.num_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = {name: leaf.shape for name, leaf in names.flatten(variables["params"]).items()}
    for name, shape in shapes.items():
        if math.prod(shape) >= _MOST_NUMBERS:
            raise failures.BadInput(
                f"{name} would have the shape {list(shape)}, the limit is {_MOST_NUMBERS} numbers; "
                "make NesT smaller."
            )
    return types.MappingProxyType(shapes)


def to_ours(form: Format, arrays: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """Our parameters, of those of another format, each of the type that it has there.

    Raises:
        BadInput: listing what is missing, extra or misshaped; or not of floating point.
    """
    table = _table(form, model)
    _require_same_shapes(form, {name: leaf.shape for name, leaf in arrays.items()}, table, model)
    found: dict[str, np.ndarray] = {}
    for entry in table:
        _require_floats(entry.theirs, arrays[entry.theirs])
        parts = entry.split(arrays[entry.theirs])
        found.update(zip(entry.ours, map(np.ascontiguousarray, parts), strict=True))
    return {name: found[name] for name in sorted(found)}


def from_ours(form: Format, params: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """The parameters of another format, of ours; in the order of their names.

    Raises:
        BadInput: listing what is missing, extra or misshaped; or if timm has no such model.
    """
    own = _table("nest_dist", model)
    shapes = {name: leaf.shape for name, leaf in params.items()}
    _require_same_shapes("nest_dist", shapes, own, model)
    joined = {
        entry.theirs: np.ascontiguousarray(entry.join(*(params[name] for name in entry.ours)))
        for entry in _table(form, model)
    }
    return {name: joined[name] for name in sorted(joined)}


def describe(model: nest.NesT) -> str:
    """A model in a few words."""
    H, W = model.geometry().image_sides
    return (
        f"a NesT of {model.num_hierarchies} levels with {model.block_repeats} layers, width "
        f"{model.dim}, {model.heads} {'query ' if model.multi_query else ''}heads and "
        f"{model.num_classes} classes for {H} x {W} pixels"
    )


def _table(form: Format, model: nest.NesT) -> list[tables.Entry]:
    if form == "official":
        return list(tables.official(model))
    if form == "timm":
        _require_known_to_timm(model)
        return list(tables.timm(model))
    return [tables.same(name, name) for name in shapes_of(model)]


def _require_known_to_timm(model: nest.NesT) -> None:
    if model.multi_query:
        raise failures.BadInput(
            "the model has multi-query attention, which timm's NesT has not; convert it to "
            "official or nest_dist."
        )
    if model.geometry().grids[-1] != (1, 1):
        raise failures.BadInput(
            f"the model ends with {model.geometry().grids[-1]} blocks, timm's NesT always with "
            "one; convert it to nest_dist, or fine-tune it with block_side = None on a square "
            "image."
        )


def _require_same_shapes(
    form: Format, found: Shapes, table: Sequence[tables.Entry], model: nest.NesT
) -> None:
    ours = shapes_of(model)
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in table:
        # Arrays of no memory: one zero, seen everywhere.
        parts = [np.broadcast_to(np.int8(0), ours[name]) for name in entry.ours]
        wanted[entry.theirs] = entry.join(*parts).shape
    faults = {
        "missing": [name for name in wanted if name not in found],
        "extra": [name for name in found if name not in wanted],
        "misshaped": [
            f"{name} {list(found[name])} instead of {list(wanted[name])}"
            for name in wanted
            if name in found and tuple(found[name]) != tuple(wanted[name])
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_some(named)}" for kind, named in faults.items() if named)
        raise failures.BadInput(
            f"the {form} weights are not those of {describe(model)}: {listed}; give the whole "
            "checkpoint of one NesT."
        )


def _some(named: Sequence[str]) -> str:
    rest = len(named) - _LISTED_NAMES
    return ", ".join(named[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _require_floats(name: str, leaf: np.ndarray) -> None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
        raise failures.BadInput(
            f"{name} has the type {leaf.dtype}; weights must be float32, or shorter floats, which "
            "float32 holds exactly."
        )
