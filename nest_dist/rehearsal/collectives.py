"""The collectives of a compiled program: kinds, sizes and mesh axes."""

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from nest_dist.rehearsal import estimates

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# TPUs fuse an all-reduce with the slice that follows it, under this name.
SCATTERING = "all-reduce-scatter"

Groups = frozenset[frozenset[int]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of each device.

    Attributes:
        kind: one of `KINDS`.
        axes: of the mesh, along which devices meet; ("?",) for any other pattern.
        shapes: type and shape of each output on one device, as "f32[8,16]"; of each input for the
            reduce-scatter of a TPU.
        computation: of the program, such as the body of a loop.
        source: the operation of the model, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    shapes: tuple[str, ...]
    computation: str
    source: str

    @property
    def bytes(self) -> int:
        """Of all the arrays."""
        return sum(map(shape_bytes, self.shapes))

    def wire_bytes(self, size: int) -> int:
        """Bytes that each of `size` devices sends, passing shards around in a ring."""
        if self.kind == "collective-permute":
            return self.bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (size - 1) // size


class Total(typing.TypedDict):
    """Collectives of one kind along the same axes, in one run of a program on one device."""

    kind: str
    axes: list[str]
    operations: int
    bytes: int
    wire_bytes: int


def read(program: estimates.Program, mesh: Mesh, slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program, as often as they are written.

    Args:
        program: compiled for the devices of `mesh`.
        mesh: names its axes.
        slices: that the axis `data` of the mesh crosses. The program is that of one slice, without
            the collectives between slices.
    """
    by_groups = _groups_of_axes(_sizes(mesh, slices))
    seen: set[tuple[str, ...]] = set()
    collectives = []
    for computation, instruction in program.instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.text)
        shapes = re.findall(r"\w+\[[\d,]*\]", instruction.type)
        # TPUs repeat an operation in every fusion that hides it behind other work. A channel alone
        # does not tell it: gradients of kernels share one.
        if channel and kind != "collective-permute":
            operation = kind, channel[1], *shapes
            if operation in seen:
                continue
            seen.add(operation)
        if kind not in (instruction.opcode, "all-reduce"):
            # Inputs, then as many outputs; a permutation has two counters besides.
            shapes = [shape for shape in shapes if shape not in ("u32[]", "s32[]")]
            shapes = shapes[len(shapes) // 2 :]
        collectives.append(
            Collective(
                kind="reduce-scatter" if computation.startswith(SCATTERING) else kind,
                axes=by_groups.get(_groups(instruction.text, mesh.size // slices), ("?",)),
                shapes=tuple(shapes),
                computation=computation,
                source=instruction.source,
            )
        )
    return collectives


def totals(
    collectives: Iterable[Collective],
    mesh: Mesh,
    executions: Mapping[str, float],
    slices: int = 1,
) -> list[Total]:
    """The collectives of `read`, added up by kind and axes.

    Args:
        executions: how often each computation of the program runs.
    """
    sizes = _sizes(mesh, slices)
    sums: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for collective in collectives:
        times = float(executions.get(collective.computation, 1))
        # In an unknown pattern: as if all devices met.
        size = math.prod(sizes.get(axis, mesh.size) for axis in collective.axes)
        counts = np.array([1, collective.bytes, collective.wire_bytes(size)])
        key = collective.kind, collective.axes
        sums[key] = sums.get(key, 0) + times * counts
    return [
        Total(
            kind=kind,
            axes=list(axes),
            operations=math.ceil(operations),
            bytes=math.ceil(size),
            wire_bytes=math.ceil(wire_size),
        )
        for (kind, axes), (operations, size, wire_size) in sums.items()
    ]


def elements(shape: str) -> int:
    """Numbers in an array of a shape such as "f32[8,16]"."""
    return math.prod(_integers(shape.partition("[")[2]))


def shape_bytes(shape: str) -> int:
    """Bytes of an array of such a shape."""
    return elements(shape) * _bits(shape) // 8


def _bits(shape: str) -> int:
    """Bits of one number of a type that HLO writes as "bf16[8]" or "pred[]"."""
    width = re.match(r"[a-z]+(\d*)", shape)
    return int(width[1] or 8) if width else 8


def _sizes(mesh: Mesh, slices: int) -> dict[str, int]:
    first, *others = mesh.shape.items()
    return {first[0]: first[1] // slices, **dict(others)}


def _groups_of_axes(sizes: Mapping[str, int]) -> dict[Groups, tuple[str, ...]]:
    """Axes by the groups of devices, numbered along the mesh, that meet along them."""
    names = list(sizes)
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    wide = [axis for axis, size in enumerate(numbers.shape) if size > 1]
    axes_of: dict[Groups, tuple[str, ...]] = {}
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            axes_of[_along(numbers, axes)] = tuple(names[axis] for axis in axes)
    return axes_of


def _groups(line: str, size: int) -> Groups:
    """The groups of devices that meet, from any form in which HLO writes them."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return _connected(np.reshape(_integers(pairs[1]), (-1, 2)), size)
    if listed := re.search(r"replica_groups=\{\{(.*?)\}\}", line):
        return frozenset(frozenset(map(int, group.split(","))) for group in listed[1].split("},{"))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+)", line):
        return _as_groups(_tiles(tiled[2]).reshape(_integers(tiled[1])))
    if named := re.search(
        r"replica_groups=mesh\[(.*?\d)\](?:, device_ids=\((.*?)\))? \{([^:]*?)\}", line
    ):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        numbers = _tiles(named[2]) if named[2] else np.arange(size)
        axes = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
        return _along(numbers.reshape([int(size) for size in sizes.values()]), axes)
    return frozenset()


def _along(numbers: np.ndarray, axes: Sequence[int]) -> Groups:
    """The groups of devices that differ along these axes alone."""
    last = np.moveaxis(numbers, axes, range(-len(axes), 0))
    return _as_groups(last.reshape(-1, math.prod(numbers.shape[axis] for axis in axes)))


def _tiles(text: str) -> np.ndarray:
    """The numbers that HLO writes as "[4,2]T(1,0)": counted row by row, then transposed."""
    shape, _, order = text.partition("T")
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order)) if order else numbers


def _integers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _as_groups(rows: Iterable[np.ndarray]) -> Groups:
    return frozenset(frozenset(map(int, row)) for row in rows)


def _connected(pairs: np.ndarray, size: int) -> Groups:
    """The groups of devices that pass data to each other, directly or through others."""
    group = np.arange(size)
    for source, target in pairs:
        group[group == group[target]] = group[source]
    return _as_groups([np.flatnonzero(group == label) for label in np.unique(group)])
