"""Weights of the official format, of timm's and of nest_dist's, exchanged one for one.

They are flat here: {"levels_0/position_embedding": array}. Nothing is computed with them; they are
only moved, split and joined, so that a conversion and its inverse give the same bytes.
"""

import typing
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.model import nest
from nest_dist.pretrained.formats import naming, native, official, timm

Arrays = Mapping[str, np.ndarray]
Format = typing.Literal["nest_dist", "official", "timm"]
FORMATS: Mapping[Format, naming.Naming] = {
    "nest_dist": native,
    "official": official,
    "timm": timm,
}
_LISTED_NAMES = 5

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


def format_of(names: Collection[str]) -> Format:
    """The format that these names belong to."""
    for form, definition in FORMATS.items():
        if definition.MARK in names:
            return form
    marks = " or ".join(definition.MARK for definition in FORMATS.values())
    raise failures.BadInput(
        f"the weights are not those of a NesT: none of their {len(names)} names is {marks}, the "
        f"first is {next(iter(names), 'missing')}; give a NesT checkpoint."
    )


def from_format(form: Format, arrays: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """The parameters of `model` from arrays in a format, in the types of the arrays.

    Raises:
        BadInput: listing what is missing, extra or misshaped; or not of floating point.
    """
    entries, shapes = list(FORMATS[form].entries(model)), native.shapes_of(model)
    _require_same_shapes(form, arrays, entries, model)
    params: dict[str, np.ndarray] = {}
    for entry in entries:
        array = arrays[entry.name]
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 4:
            raise failures.BadInput(
                f"{entry.name} has the type {array.dtype}; weights must be float32, or shorter "
                "floats, which float32 holds exactly."
            )
        leaves = entry.split(array, [shapes[name] for name in entry.params])
        params.update(zip(entry.params, map(np.ascontiguousarray, leaves), strict=True))
    return dict(sorted(params.items()))


def to_format(form: Format, params: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """Arrays in a format from the parameters of `model`, in the order of their names."""
    _require_same_shapes("nest_dist", params, native.entries(model), model)
    return {
        entry.name: np.ascontiguousarray(entry.joined(*(params[name] for name in entry.params)))
        for entry in sorted(FORMATS[form].entries(model), key=lambda entry: entry.name)
    }


def describe(model: nest.NesT) -> str:
    """A model in a few words."""
    H, W = model.geometry().image_sides
    return (
        f"a NesT of {model.num_hierarchies} levels with {model.block_repeats} layers, width "
        f"{model.dim}, {model.heads} {'query ' if model.multi_query else ''}heads and "
        f"{model.num_classes} classes for {H} x {W} pixels"
    )


def _require_same_shapes(
    form: Format, arrays: Arrays, entries: Iterable[naming.Entry], model: nest.NesT
) -> None:
    shapes = {name: leaf.shape for name, leaf in arrays.items()}
    # Arrays of no memory: one zero, seen everywhere.
    params = {n: np.broadcast_to(np.int8(0), s) for n, s in native.shapes_of(model).items()}
    wanted = {
        entry.name: entry.joined(*(params[name] for name in entry.params)).shape
        for entry in entries
    }
    faults = {
        "missing": [name for name in wanted if name not in shapes],
        "extra": [name for name in shapes if name not in wanted],
        "misshaped": [
            f"{name} {list(shapes[name])} instead of {list(wanted[name])}"
            for name in wanted
            if name in shapes and shapes[name] != wanted[name]
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise failures.BadInput(
            f"the {form} weights are not those of {describe(model)}: {listed}; give the whole "
            "checkpoint of one NesT."
        )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")
