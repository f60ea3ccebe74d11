"""The kernels of a step: what each takes, by its bundles and by its traffic with HBM."""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable, Iterator, Sequence

import jax

from nest_dist.base import chips
from nest_dist.rehearsal import bundles, estimates

CALL = "tpu_custom_call"
TYPES = {"float32": "f32", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True)
class Counted:
    """A kernel with shapes.

    Attributes:
        name: of the kernel.
        results: their types as "f32[8,16]"; with the name they tell it from all others.
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


def count(traced: jax.stages.Traced, topology: str) -> list[Counted]:
    """The distinct kernels of a traced function, each compiled alone for a topology."""
    distinct = {(call.params["name"], _results(call)): call for call in _calls(traced.jaxpr.jaxpr)}
    steps = bundles.count([_exported(call) for call in distinct.values()], topology)
    return [
        Counted(
            name=name,
            results=results,
            steps=math.prod(call.params["grid_mapping"].grid),
            cores=call.params["grid_mapping"].grid[0],
            step=step,
        )
        for ((name, results), call), step in zip(distinct.items(), steps, strict=True)
    ]


def cycles(
    program: estimates.Program,
    counted: Sequence[Counted],
    chip: chips.Chip,
    group: Callable[[estimates.Instruction], str],
    computed: Callable[[estimates.Instruction], float],
) -> dict[str, int]:
    """Cycles of all kernels of a compiled program, added up by their `group`.

    Those of one are its bundles, or its bytes from and to HBM at the public rate if they are more.

    Args:
        chip: runs the program.
        group: of a call.
        computed: the share of a call's steps that is computed: not of dropped branches.
    """
    known = {(kernel.name, kernel.results): kernel for kernel in counted}
    a_byte = chip.cycles_per_second / chip.memory_bytes_per_second
    sums: dict[str, float] = {}
    for times, instruction in program.calls(CALL):
        name = re.sub(r"[.\d]+$", "", instruction.name)
        kernel = known.get((name, tuple(re.findall(r"\w+\[[\d,]*\]", instruction.type))))
        if kernel is not None:
            busy = kernel.cycles * computed(instruction)
            once = max(busy, program.traffic(instruction) * a_byte)
            sums[group(instruction)] = sums.get(group(instruction), 0) + times * once
    return {name: round(number) for name, number in sums.items()}


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


def _results(call: typing.Any) -> tuple[str, ...]:
    return tuple(
        f"{TYPES[str(each.aval.dtype)]}[{','.join(map(str, each.aval.shape))}]"
        for each in call.outvars
    )


def _exported(call: typing.Any) -> jax.export.Exported:
    """The kernel alone, for a TPU."""
    alone = jax.jit(functools.partial(call.primitive.bind, **call.params))
    operands = [jax.ShapeDtypeStruct(each.aval.shape, each.aval.dtype) for each in call.invars]
    return jax.export.export(alone, platforms=["tpu"])(*operands)
