"""Cycles of a compiled program, as its compiler estimates them, with loops counted as they run."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

# Opcodes that run other computations, and the attributes that name these.
CALLS = {
    "while": ("body", "condition"),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "call": ("to_apply",),
    "async-start": ("calls",),
}
# Opcodes that take time; the compiler estimates nearly all of them.
WORK = (
    *("fusion", "convolution", "dot", "reduce", "reduce-window", "select-and-scatter", "sort"),
    *("scatter", "gather", "copy", "transpose", "custom-call", "rng-bit-generator"),
)
# Custom calls that take none: they name memory.
FREE = re.compile(
    'custom_call_target="(ConcatBitcast|AllocateBuffer|AssumeGatherIndicesInBound|SliceId)"'
)

# Of an instruction, at its end: what changes nothing but how it is called.
ATTRIBUTES = "sharding|frontend_attributes|metadata|backend_config"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of optimized HLO.

    Attributes:
        name: unique in the program.
        opcode: as "fusion" or "while".
        text: of the line.
    """

    name: str
    opcode: str
    text: str

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution; None without an estimate."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.text)
        return int(match[1]) if match else None

    @property
    def source(self) -> str:
        """The operation of the model, as JAX names it."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match[1] if match else ""

    @property
    def type(self) -> str:
        """Type, shape and layout of its result, or of several."""
        return self.text.partition(f" {self.opcode}(")[0].partition(" = ")[2]

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        inside = self.text.partition(f" {self.opcode}(")[2]
        return re.findall(r"%([\w.\-]+)", inside.partition(")")[0])

    def called(self, attribute: str) -> list[str]:
        """The computations under an attribute such as "body" or "branch_computations"."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.text)
        return re.findall(r"%([\w.\-]+)", match[1]) if match else []


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: name -> instructions.
        executions: name -> how often it runs in one run of the program, on average: the branches
            of a conditional are equally likely. A fused computation runs with its fusion.
        fused: names of computations inside fusions.
        uncounted: loops whose condition has no trip count; they count once.
    """

    computations: Mapping[str, Sequence[Instruction]]
    executions: Mapping[str, float]
    fused: frozenset[str]
    uncounted: tuple[str, ...]

    def cycles(self, group: Callable[[Instruction], str]) -> dict[str, int]:
        """Cycles of all instructions with an estimate, added up by their `group`."""
        sums: dict[str, float] = collections.defaultdict(float)
        for times, instruction in self._run():
            if cycles := instruction.cycles:
                sums[group(instruction)] += times * cycles
        return {name: round(cycles) for name, cycles in sums.items()}

    def work(self) -> Iterator[tuple[float, Instruction]]:
        """The instructions that take time, each with its executions."""
        for times, instruction in self._run():
            array = re.search(r" = \(?\w+\[\d", instruction.text)
            if array and instruction.opcode in WORK and not FREE.search(instruction.text):
                yield times, instruction

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction after the name of its computation."""
        for name, instructions in self.computations.items():
            yield from ((name, instruction) for instruction in instructions)

    def form(self, instruction: Instruction) -> str:
        """The instruction and what is fused in it, without names: alike ones have one form."""
        numbers: dict[str, int] = {}
        text = "\n".join(
            re.sub(rf",? ({ATTRIBUTES})=.*", "", line) for line in self._lines(instruction)
        )
        return re.sub(
            r"%[\w.\-]+", lambda name: f"%{numbers.setdefault(name[0], len(numbers))}", text
        )

    def _lines(self, instruction: Instruction) -> Iterator[str]:
        yield instruction.text.strip().removeprefix("ROOT ")
        for name in instruction.called("calls"):
            for inner in self.computations[name]:
                yield from self._lines(inner)

    def traffic(self, instruction: Instruction) -> int:
        """Bytes of the operands and results in HBM, as often as the instruction runs once."""
        operands = [self._types.get(name, "") for name in instruction.operands]
        return sum(map(_hbm_bytes, [instruction.type, *operands]))

    @functools.cached_property
    def _types(self) -> dict[str, str]:
        return {instruction.name: instruction.type for _, instruction in self.instructions()}

    def _run(self) -> Iterator[tuple[float, Instruction]]:
        for name, instruction in self.instructions():
            if name in self.executions and name not in self.fused:
                yield self.executions[name], instruction


def read(text: str) -> Program:
    """A program from the text of its optimized HLO."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if heading := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            current = heading[2]
            computations[current] = []
            entry = current if heading[1] else entry
        elif match := re.match(r"\s+(?:ROOT )?%(\S+) = .*? ([a-z][\w\-]*)\(", line):
            computations[current].append(Instruction(match[1], match[2], line))
    executions: dict[str, float] = collections.defaultdict(float)
    fused, uncounted = set(), []
    pending = [(entry, 1.0)]
    while pending:
        name, times = pending.pop()
        executions[name] += times
        for instruction in computations[name]:
            factor = 1.0
            called = [
                computation
                for attribute in CALLS.get(instruction.opcode, ())
                for computation in instruction.called(attribute)
            ]
            if instruction.opcode == "while":
                trips = _trip_count(computations[instruction.called("condition")[0]])
                factor = trips or 1
                uncounted += [instruction.name] * (trips is None)
            elif instruction.opcode == "conditional":
                factor = 1 / len(called)
            pending += [(computation, times * factor) for computation in called]
            if instruction.opcode == "fusion":
                for computation in instruction.called("calls"):
                    executions[computation] += times
                    fused.add(computation)
    return Program(computations, executions, frozenset(fused), tuple(uncounted))


def _trip_count(condition: Sequence[Instruction]) -> int | None:
    """The trip count of a loop that counts from 0 to the constant in its condition, as JAX's do.

    The metadata of the loop does not have it.
    """
    comparisons = [instruction for instruction in condition if "direction=LT" in instruction.text]
    constants = {
        instruction.name: int(match[1])
        for instruction in condition
        if (match := re.search(r" [su]32\[\]\S* constant\((\d+)\)", instruction.text))
    }
    if len(comparisons) != 1:
        return None
    limits = [constants[name] for name in comparisons[0].operands if name in constants]
    return limits[0] if len(limits) == 1 else None


def _hbm_bytes(types: str) -> int:
    """Bytes in HBM of arrays such as "f32[8,16]{1,0:T(8,128)}", as tiles; S(1) is on the chip."""
    total = 0
    for bits, sizes, layout in re.findall(r"[a-z]+(\d*)\[([\d,]*)\](\{[^}]*\})?", types):
        if "S(1)" in layout:
            continue
        lengths = [int(size) for size in sizes.split(",") if size]
        order = re.match(r"\{([\d,]*)", layout)
        minor = [int(axis) for axis in order[1].split(",") if axis] if order else []
        tile = re.search(r"T\(([\d,]*)\)", layout)
        units = reversed([int(unit) for unit in tile[1].split(",")]) if tile else ()
        for axis, unit in zip(minor, units, strict=False):
            lengths[axis] = -(-lengths[axis] // unit) * unit
        total += math.prod(lengths) * int(bits or 8) // 8
    return total
