"""What a compiler says that a program costs: the cycles in its text, loops counted as they run."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

# Where a computation goes on in others: each with the attribute that names them.
CALLS = {
    "while": ("body", "condition"),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "call": ("to_apply",),
    "async-start": ("calls",),
}
# What takes time; the compiler estimates nearly all of it.
WORK = (
    *("fusion", "convolution", "dot", "reduce", "reduce-window", "select-and-scatter", "sort"),
    *("scatter", "gather", "copy", "transpose", "custom-call", "rng-bit-generator"),
)
# Names for memory that is there already.
FREE = re.compile(
    'custom_call_target="(ConcatBitcast|AllocateBuffer|AssumeGatherIndicesInBound|SliceId)"'
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of optimized HLO.

    Attributes:
        name: unique in the program.
        opcode: as "fusion" or "while".
        root: whether it is what its computation gives.
        text: the whole line.
    """

    name: str
    opcode: str
    root: bool
    text: str

    @property
    def cycles(self) -> int | None:
        """By the compiler's estimate, each time that it runs; None where there is none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.text)
        return int(found[1]) if found else None

    @property
    def source(self) -> str:
        """The place in the model, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that it takes."""
        inside = self.text.partition(f" {self.opcode}(")[2]
        return re.findall(r"%([\w.\-]+)", inside.partition(")")[0])

    def called(self, attribute: str) -> list[str]:
        """The computations under an attribute such as "body" or "branch_computations"."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.text)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: name -> instructions.
        executions: name -> how often it runs in one run of the program, on average: each branch of
            a choice is taken as likely as the others. What stands inside a fusion runs with it.
        fused: the names of those that stand inside a fusion.
        uncounted: loops whose number of turns is not in their condition; they count once.
    """

    computations: Mapping[str, Sequence[Instruction]]
    executions: Mapping[str, float]
    fused: frozenset[str]
    uncounted: tuple[str, ...]

    def cycles(self, part: Callable[[Instruction], str]) -> dict[str, int]:
        """Cycles of all instructions with an estimate, by the part that `part` puts them in."""
        found: dict[str, float] = collections.defaultdict(float)
        for times, instruction in self._run():
            if cycles := instruction.cycles:
                found[part(instruction)] += times * cycles
        return {name: round(cycles) for name, cycles in found.items()}

    def without_estimate(self) -> dict[str, int]:
        """By opcode, how often something runs that takes time and has no estimate."""
        found: dict[str, float] = collections.defaultdict(float)
        for times, instruction in self._run():
            array = re.search(r" = \(?\w+\[\d", instruction.text)
            works = array and instruction.opcode in WORK and not FREE.search(instruction.text)
            if works and instruction.cycles is None:
                found[instruction.opcode] += times
        return {opcode: math.ceil(times) for opcode, times in found.items()}

    def _run(self) -> list[tuple[float, Instruction]]:
        return [
            (times, instruction)
            for name, times in self.executions.items()
            if name not in self.fused
            for instruction in self.computations[name]
        ]


def read(text: str) -> Program:
    """A program from the text of its optimized HLO."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if heading := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            current = heading[2]
            computations[current] = []
            entry = current if heading[1] else entry
        elif found := re.match(r"\s+(ROOT )?%(\S+) = .*? ([a-z][\w\-]*)\(", line):
            instruction = Instruction(found[2], found[3], bool(found[1]), line)
            computations[current].append(instruction)
    executions: dict[str, float] = collections.defaultdict(float)
    fused, uncounted = set(), []
    pending = [(entry, 1.0)]
    while pending:
        name, times = pending.pop()
        executions[name] += times
        for instruction in computations[name]:
            turns = 1.0
            called = [
                each
                for attribute in CALLS.get(instruction.opcode, ())
                for each in instruction.called(attribute)
            ]
            if instruction.opcode == "while":
                counted = _turns(computations[instruction.called("condition")[0]])
                turns = counted or 1
                uncounted += [instruction.name] * (counted is None)
            elif instruction.opcode == "conditional":
                turns = 1 / len(called)
            pending += [(each, times * turns) for each in called]
            if instruction.opcode == "fusion":
                for each in instruction.called("calls"):
                    executions[each] += times
                    fused.add(each)
    return Program(computations, executions, frozenset(fused), tuple(uncounted))


def _turns(condition: Sequence[Instruction]) -> int | None:
    """How often a loop turns that counts from 0 up to the constant in its condition, as JAX's do.

    The number is not in the metadata of the loop.
    """
    comparisons = [each for each in condition if "direction=LT" in each.text]
    constants = {
        each.name: int(found[1])
        for each in condition
        if (found := re.search(r" [su]32\[\]\S* constant\((\d+)\)", each.text))
    }
    if len(comparisons) != 1:
        return None
    limits = [constants[name] for name in comparisons[0].operands if name in constants]
    return limits[0] if len(limits) == 1 else None
