"""The audit of a run's parameters: shape, mesh axes, treatment and sharding rule of each."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import jax
import numpy as np

from nest_dist.base import failures, tree_paths
from nest_dist.sharding import rules
from nest_dist.train import parameter_rules

# From this size on a replicated parameter is refused, on a mesh that shards parameters.
LARGE_BYTES = 2**18
_TREATMENT = ("rate", "decay", "frozen")  # factors of learning rate and weight decay


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter."""

    name: str  # its path in the tree, with slashes
    shape: tuple[int, ...]  # unsharded
    dtype: str  # as stored
    axes: tuple[tuple[str, ...], ...]  # the mesh axes that shard each dimension
    device_bytes: int  # size of the shard on each device
    treatment: parameter_rules.Treatment  # learning rate, weight decay, or frozen
    rule: str  # the name pattern that decides its sharding


def entries(
    sharding: rules.ShardingContext,
    params: tree_paths.Tree,
    parameter_axes: Mapping[str, rules.Axes],
    treatments: parameter_rules.Treatments,
) -> list[Entry]:
    """One entry for each of `params`, shapes with shardings, in the tree's order.

    Raises:
        BadInput: for a parameter that no rule or more than one fits, or a rule that fits no
            parameter. Also for a large replicated parameter on a mesh that shards parameters.
    """
    treatments.require_fitting(tree_paths.flatten(params).keys())
    listed = []
    for name, leaf in tree_paths.flatten(params).items():
        rule, axes = rules.axes_of(name, parameter_axes)
        mesh_axes = tuple(sharding.mesh_axes(axes, leaf.shape))
        size, dtype = device_bytes(leaf), str(leaf.dtype)
        treatment = treatments(name)
        listed.append(Entry(name, leaf.shape, dtype, mesh_axes, size, treatment, rule))
    for rule in parameter_axes.keys() - {entry.rule for entry in listed}:
        raise failures.BadInput(
            f"the sharding rule {rule!r} fits no parameter; the names are like "
            f"{listed[0].name!r}: correct it, or take it out."
        )
    _require_sharded(sharding, listed, parameter_axes)
    return listed


def device_bytes(tree: tree_paths.Tree) -> int:
    """Bytes that each device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def table(listed: list[Entry]) -> str:
    """The entries as aligned text; the last line has the sums."""
    header = ("parameter", "shape", "dtype", "mesh axes", "bytes a device", *_TREATMENT, "rule")
    lines = [
        (
            entry.name,
            " x ".join(map(str, entry.shape)),
            entry.dtype,
            ", ".join("+".join(axes) or "-" for axes in entry.axes),
            f"{entry.device_bytes:,}",
            *_treatment(entry.treatment),
            entry.rule,
        )
        for entry in listed
    ]
    count = sum(math.prod(entry.shape) for entry in listed)
    total = sum(entry.device_bytes for entry in listed)
    empty = ("",) * (len(_TREATMENT) + 1)
    sums = (f"{len(listed)} parameters", f"{count:,}", "", "", f"{total:,}", *empty)
    rows = [header, *lines, sums]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right_aligned = header.index("bytes a device")
    return "".join(
        "  ".join(
            cell.rjust(width) if column == right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


def _treatment(it: parameter_rules.Treatment) -> tuple[str, str, str]:
    """The cells of `_TREATMENT`."""
    return ("-", "-", "yes") if it.frozen else (f"{it.multiplier:.4g}", f"{it.decay:.4g}", "no")


def _require_sharded(
    sharding: rules.ShardingContext, listed: list[Entry], parameter_axes: Mapping[str, rules.Axes]
) -> None:
    shards = sharding.shards("embed")
    if shards == 1:
        return
    embed_mesh_axes = set(sharding.rules.embed)
    replicated = [
        (entry.name, length)
        for entry in listed
        if math.prod(entry.shape) * np.dtype(entry.dtype).itemsize >= LARGE_BYTES
        and embed_mesh_axes.isdisjoint(itertools.chain(*entry.axes))
        for length, axis in zip(entry.shape, parameter_axes[entry.rule], strict=True)
        if axis == "embed"
    ]
    if replicated:
        name, length = replicated[0]
        fits = math.gcd(shards, *(length for _, length in replicated))
        raise failures.BadInput(
            f"MeshShape.fsdp is {shards}, which does not divide {length} of {name}, so every "
            f"device would hold all of it; lower it to {fits} and give the other devices to "
            "MeshShape.data."
        )
