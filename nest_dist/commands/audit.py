"""Every parameter of a run: where it lies, how it is treated, and by which rule. Nothing silent."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping

import jax
import numpy as np

from nest_dist.base import failures, names
from nest_dist.parallel import rules
from nest_dist.train import optimizer

# From here on it matters that a parameter is stored whole on every device: 256 KiB.
LARGE_BYTES = 2**18


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
        name: with slashes.
        shape: of the whole.
        dtype: as stored.
        axes: the mesh axes of each dimension.
        device_bytes: of the part that each device holds.
        decays: whether weight decay applies.
        rule: the name pattern that placed it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[tuple[str, ...], ...]
    device_bytes: int
    decays: bool
    rule: str

    @property
    def whole_bytes(self) -> int:
        """Of the whole parameter."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def entries(
    layout: rules.Layout,
    params: typing.Any,
    parameter_axes: Mapping[str, rules.Axes],
    not_decayed: tuple[str, ...],
) -> list[Entry]:
    """One entry for each parameter, in the tree's order.

    Args:
        layout: mesh and rules.
        params: shapes with shardings.
        parameter_axes: name pattern -> logical axes.
        not_decayed: name patterns of what weight decay spares.
    Raises:
        BadInput: for a parameter without its one rule, a rule without a parameter, or a large
            parameter that every device holds whole although the mesh shares parameters out.
    """
    decays = names.flatten(optimizer.decay_mask(params, not_decayed))
    found = []
    for name, leaf in names.flatten(params).items():
        rule, axes = rules.axes_of(name, parameter_axes)
        places = tuple(layout.places(axes, leaf.shape))
        found.append(
            Entry(
                name=name,
                shape=leaf.shape,
                dtype=str(leaf.dtype),
                axes=places,
                device_bytes=device_bytes(leaf),
                decays=decays[name],
                rule=rule,
            )
        )
    for rule in parameter_axes.keys() - {entry.rule for entry in found}:
        raise failures.BadInput(
            f"the sharding rule {rule!r} fits no parameter; the names are like "
            f"{found[0].name!r}: correct it, or take it out."
        )
    _require_shared_out(layout, found, parameter_axes)
    return found


def device_bytes(tree: typing.Any) -> int:
    """Bytes of a tree of shapes with shardings on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def table(found: list[Entry]) -> str:
    """The entries as aligned text, with a line of sums."""
    head = ("parameter", "shape", "dtype", "mesh axes", "bytes a device", "decay", "rule")
    lines = [
        (
            entry.name,
            " x ".join(map(str, entry.shape)),
            entry.dtype,
            ", ".join("+".join(place) or "-" for place in entry.axes),
            f"{entry.device_bytes:,}",
            "yes" if entry.decays else "no",
            entry.rule,
        )
        for entry in found
    ]
    count = sum(math.prod(entry.shape) for entry in found)
    total = sum(entry.device_bytes for entry in found)
    sums = (f"{len(found)} parameters", f"{count:,}", "", "", f"{total:,}", "", "")
    rows = [head, *lines, sums]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = head.index("bytes a device")
    return "".join(
        "  ".join(
            cell.rjust(width) if column == numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


def _require_shared_out(
    layout: rules.Layout, found: list[Entry], parameter_axes: Mapping[str, rules.Axes]
) -> None:
    shards = layout.shards("embed")
    if shards == 1:
        return
    sharing = set(layout.rules.embed)
    left = {
        entry.name: [
            length
            for length, axis in zip(entry.shape, parameter_axes[entry.rule], strict=True)
            if axis == "embed"
        ]
        for entry in found
        if entry.whole_bytes >= LARGE_BYTES and sharing.isdisjoint(itertools.chain(*entry.axes))
    }
    if left:
        name, lengths = next(iter(left.items()))
        fits = math.gcd(shards, *(length for each in left.values() for length in each))
        raise failures.BadInput(
            f"MeshShape.fsdp is {shards}, which does not divide {lengths[0]} of {name}, so every "
            f"device would hold all of it; lower it to {fits} and give the other devices to "
            "MeshShape.data."
        )
