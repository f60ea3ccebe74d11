"""Cycles by bundles and by traffic with HBM: of kernels, and of what else has no estimate."""

import collections
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax

from nest_dist.base import chips
from nest_dist.rehearsal import bundles, estimates

TYPES = {"float32": "f32", "bfloat16": "bf16"}

# Name and types of the results as "f32[8,16]": together they tell a kernel from all others.
Key = tuple[str, tuple[str, ...]]
Grids = Mapping[Key, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Counted:
    """A kernel with shapes.

    Attributes:
        name: of the kernel.
        results: their types as "f32[8,16]".
        steps: of its grid.
        cores: of a device, which share the steps: the first dimension of the grid.
        step: cycles of one.
    """

    name: str
    results: tuple[str, ...]
    steps: int
    cores: int
    step: bundles.Bundles

    @property
    def cycles(self) -> float:
        """Of one execution, without waiting for HBM."""
        return self.step.low * self.steps / self.cores


@dataclasses.dataclass(frozen=True)
class Sums:
    """Cycles by group, and executions by opcode of instructions without bundles."""

    cycles: Mapping[str, int]
    missing: Mapping[str, int]


def grids(traced: jax.stages.Traced) -> Grids:
    """The grid of each distinct kernel of a traced function."""
    return {
        (call.params["name"], _results(call)): call.params["grid_mapping"].grid
        for call in _calls(traced.jaxpr.jaxpr)
    }


def count(program: estimates.Program, grids: Grids, written: bundles.Written) -> list[Counted]:
    """The kernels of a compiled program."""
    found = {}
    for _, instruction in program.work():
        key, path = _key(instruction, grids), written.get(instruction.name)
        if key is not None and path is not None:
            step = bundles.of_step(path.read_text(errors="replace"))
            found[key] = Counted(*key, math.prod(grids[key]), grids[key][0], step)
    return list(found.values())


def cycles(
    program: estimates.Program,
    counted: Sequence[Counted],
    written: bundles.Written,
    chip: chips.Chip,
    group: Callable[[estimates.Instruction], str | None],
    computed: Callable[[estimates.Instruction], float] = lambda _: 1,
) -> Sums:
    """Cycles of instructions added up by their `group`, which is None for those to leave out.

    Those of one are its bundles, or its bytes from and to HBM at the public rate if they are more.
    The compiler writes the bundles of instructions that are alike once.

    Args:
        chip: runs the program.
        group: of an instruction.
        computed: the share of a kernel's steps that is computed: not of dropped branches.
    """
    known = {(kernel.name, kernel.results): kernel for kernel in counted}
    a_byte = chip.cycles_per_second / chip.memory_bytes_per_second
    sums: dict[str, float] = collections.defaultdict(float)
    missing: dict[str, float] = collections.defaultdict(float)
    alike = {
        program.form(instruction): written[instruction.name]
        for _, instruction in program.work()
        if instruction.name in written
    }
    for times, instruction in program.work():
        if (name := group(instruction)) is None:
            continue
        if (key := _key(instruction, known)) is not None:
            busy = known[key].cycles * computed(instruction)
        elif (path := alike.get(program.form(instruction))) is not None:
            busy = bundles.of_instruction(path.read_text(errors="replace"))
        else:
            missing[instruction.opcode] += times
            continue
        sums[name] += times * max(busy, program.traffic(instruction) * a_byte)
    return Sums(
        {name: round(number) for name, number in sums.items()},
        {opcode: math.ceil(times) for opcode, times in missing.items()},
    )


def _calls(jaxpr: typing.Any) -> Iterator[typing.Any]:
    """The calls of kernels in a program and in those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _calls(inner)


def _key(instruction: estimates.Instruction, known: Iterable[Key]) -> Key | None:
    """The kernel that an instruction calls; its own name may have more around the kernel's."""
    results = tuple(re.findall(r"\w+\[[\d,]*\]", instruction.type))
    calls = instruction.opcode == "custom-call"
    return next((k for k in known if calls and k[0] in instruction.name and k[1] == results), None)


def _results(call: typing.Any) -> tuple[str, ...]:
    return tuple(
        f"{TYPES[str(each.aval.dtype)]}[{','.join(map(str, each.aval.shape))}]"
        for each in call.outvars
    )
