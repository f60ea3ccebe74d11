"""What devices say to each other in a compiled program: every collective, its size and its axes."""

import collections
import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# TPUs fuse an all-reduce with the slice that follows it, under this name.
SCATTERING = "all-reduce-scatter"

Groups = frozenset[frozenset[int]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of each device.

    Attributes:
        kind: one of `KINDS`.
        axes: of the mesh, along which devices meet; ("?",) if they meet in another pattern.
        shapes: the type and shape of each array that comes out of it on one device, as
            "f32[8,16]"; for the reduce-scatter of a TPU, of what goes in.
        computation: the part of the program in which it stands, such as the body of a loop.
        source: the place in the model, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    shapes: tuple[str, ...]
    computation: str
    source: str

    @property
    def elements(self) -> int:
        """Numbers in all the arrays."""
        return sum(map(_elements, self.shapes))

    @property
    def bytes(self) -> int:
        """Of all the arrays."""
        return sum(_elements(shape) * _bits(shape) // 8 for shape in self.shapes)

    def wire_bytes(self, size: int) -> int:
        """What each of `size` devices sends, passing parts around in a ring."""
        if self.kind == "collective-permute":
            return self.bytes
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (size - 1) // size


def found(program: str, mesh: Mesh, slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program, each as often as it is written there.

    Args:
        program: the text of optimized HLO.
        mesh: that it was compiled for.
        slices: that the axis `data` of the mesh crosses. The compiler writes a program for one of
            them; what they say to each other is not among its collectives.
    """
    by_groups = _groups_of_axes(_sizes(mesh, slices))
    seen: set[tuple[str, str]] = set()
    collectives = []
    computation = ""
    for line in program.splitlines():
        if heading := re.match(r"(?:ENTRY )?%(\S+) \(.*\{$", line):
            computation = heading[1]
        operation = re.match(rf"\s+(?:ROOT )?%\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if operation is None:
            continue
        types, kind, start = operation.groups()
        channel = re.search(r"channel_id=(\d+)", line)
        # TPUs repeat an operation in each of the fusions that hide it behind other work.
        if channel and kind != "collective-permute":
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        shapes = re.findall(r"\w+\[[\d,]*\]", types)
        if start:
            # A pair of what goes in and what comes out; a permutation has two counters besides.
            shapes = [shape for shape in shapes if shape not in ("u32[]", "s32[]")]
            shapes = shapes[len(shapes) // 2 :]
        source = re.search(r'op_name="([^"]*)"', line)
        collectives.append(
            Collective(
                kind="reduce-scatter" if computation.startswith(SCATTERING) else kind,
                axes=by_groups.get(_groups(line, mesh.size // slices), ("?",)),
                shapes=tuple(shapes),
                computation=computation,
                source=source[1] if source else "",
            )
        )
    return collectives


def totals(
    found: Iterable[Collective], mesh: Mesh, executions: Mapping[str, float], slices: int = 1
) -> list[dict[str, typing.Any]]:
    """Of each kind along the same axes: operations a run, their bytes, and those on the wire.

    Args:
        found: the collectives of a program.
        mesh: that it was compiled for.
        executions: how often each computation of the program runs.
        slices: as of `found`.
    """
    sizes = _sizes(mesh, slices)
    counted: dict[tuple[str, ...], dict[str, float]] = {}
    for each in found:
        times = executions.get(each.computation, 1)
        # Along no axis: as if all devices met.
        size = math.prod(sizes.get(axis, mesh.size) for axis in each.axes)
        total = counted.setdefault((each.kind, *each.axes), collections.defaultdict(float))
        total["operations"] += times
        total["bytes"] += times * each.bytes
        total["wire_bytes"] += times * each.wire_bytes(size)
    return [
        {"kind": kind, "axes": axes, **{name: math.ceil(value) for name, value in total.items()}}
        for (kind, *axes), total in counted.items()
    ]


def _elements(shape: str) -> int:
    return math.prod(_integers(shape.partition("[")[2]))


def _bits(shape: str) -> int:
    """Of one number of a type that HLO writes as "bf16[8]" or "pred[]"."""
    width = re.match(r"[a-z]+(\d*)", shape)
    return int(width[1] or 8) if width else 8


def _sizes(mesh: Mesh, slices: int) -> dict[str, int]:
    first, *others = mesh.shape.items()
    return {first[0]: first[1] // slices, **dict(others)}


def _groups_of_axes(sizes: Mapping[str, int]) -> dict[Groups, tuple[str, ...]]:
    """The devices, numbered along the mesh, that meet along each combination of axes."""
    names = list(sizes)
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    wide = [axis for axis, size in enumerate(numbers.shape) if size > 1]
    found: dict[Groups, tuple[str, ...]] = {}
    for count in range(1, len(wide) + 1):
        for chosen in itertools.combinations(wide, count):
            found[_along(numbers, chosen)] = tuple(names[axis] for axis in chosen)
    return found


def _groups(line: str, size: int) -> Groups:
    """Which devices meet, in any of the forms in which HLO says it."""
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
        chosen = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
        return _along(numbers.reshape([int(each) for each in sizes.values()]), chosen)
    return frozenset()


def _along(numbers: np.ndarray, axes: Sequence[int]) -> Groups:
    """The groups of those that differ along these axes alone."""
    last = np.moveaxis(numbers, axes, range(-len(axes), 0))
    return _as_groups(last.reshape(-1, math.prod(numbers.shape[axis] for axis in axes)))


def _tiles(text: str) -> np.ndarray:
    """The numbers that HLO writes as "[4,2]T(1,0)": counted row by row, then transposed."""
    shape, _, order = text.partition("T")
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order)) if order else numbers


def _integers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


def _as_groups(rows: Iterable[np.ndarray]) -> Groups:
    return frozenset(frozenset(map(int, row)) for row in rows)


def _connected(pairs: np.ndarray, size: int) -> Groups:
    """Devices that reach each other by passing on."""
    group = np.arange(size)
    for source, target in pairs:
        group[group == group[target]] = group[source]
    return _as_groups([np.flatnonzero(group == each) for each in np.unique(group)])
