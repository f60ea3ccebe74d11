"""Cycles by the instructions that the compiler has scheduled.

The compiler estimates no kernel, nor a few other operations. But it can write its final bundles:
what a TPU starts together in a cycle, unless it waits. The bundles of a v5e hold no wait for a
matrix unit, whose results come from a queue that makes the core wait; `waiting` replays the bundles
with such queues.
"""

import atexit
import collections
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nest_dist.base import scratch

VARIABLE = "LIBTPU_INIT_ARGS"
FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
)

# The file of an instruction's bundles, by the name of the instruction.
Written = Mapping[str, pathlib.Path]


class Units(typing.NamedTuple):
    """What a matrix unit takes, in cycles.

    Attributes:
        row: of the left matrix.
        push: of a register of the right matrix, beside the products.
        latency: from the first row to its result.
    """

    row: float
    push: float
    latency: float


# The compiler's own figures, and slower ones: those of the hardware are not published.
COMPILER = Units(row=1, push=4, latency=24)
SLOWER = Units(row=1, push=8, latency=90)
# Products that a unit holds at a time.
QUEUE = 8

Operation = tuple[str, int, int]  # kind, matrix unit, rows


@dataclasses.dataclass(frozen=True)
class Bundles:
    """One step of a kernel's grid, in cycles.

    Attributes:
        issued: bundles.
        low: with waiting for matrix units as fast as the compiler takes them to be.
        high: with waiting for slower ones.
    """

    issued: int
    low: int
    high: int


@contextlib.contextmanager
def asked_for() -> Iterator[None]:
    """If libtpu loads while this is open, it writes the bundles of all that it compiles."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{before or ''} {FLAGS.format(folder=_folder())}".strip()
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def written() -> Written:
    """The bundles of what was compiled since `forget`."""
    paths = {}
    for path in _folder().iterdir():
        if match := re.fullmatch(r"\d+-(.*)-\d+-final_bundles\.txt", path.name):
            paths[match[1]] = path
    return paths


def forget() -> None:
    """Removes the bundles of earlier programs."""
    for path in _folder().iterdir():
        path.unlink()


def of_step(text: str) -> Bundles:
    """The bundles of a step of a kernel's grid, from the text that the compiler writes.

    What lies inside a loop runs in each step of the grid; a grid of one step has no loop. Loops
    inside a step count once: those of kernels here wait for HBM.
    """
    read = list(_read(text))
    inside = [bundle.operations for bundle in read if bundle.depth > 0]
    bundles = inside or [bundle.operations for bundle in read]
    return Bundles(len(bundles), *(round(waiting(bundles, units)) for units in (COMPILER, SLOWER)))


def of_instruction(text: str) -> float:
    """Cycles of an instruction of XLA, its loops as often as they turn, without waiting for HBM."""
    read = list(_read(text))
    turns: list[int] = []  # of the loops around
    stretches: list[tuple[int, list[Sequence[Operation]]]] = []
    for at, bundle in enumerate(read):
        if not stretches or bundle.depth != len(turns) or bundle.begins:
            del turns[bundle.depth - bundle.begins :]
            while len(turns) < bundle.depth:
                turns.append(_turns(read[at:], len(turns) + 1))
            stretches.append((math.prod(turns), []))
        stretches[-1][1].append(bundle.operations)
    return sum(times * waiting(bundles, COMPILER) for times, bundles in stretches)


def waiting(bundles: Iterable[Iterable[Operation]], units: Units) -> float:
    """Cycles of bundles that start one after the other and wait for matrix units."""
    now = 0.0
    free: dict[int, float] = collections.defaultdict(float)
    pushed: dict[int, float] = collections.defaultdict(float)
    starts: dict[int, collections.deque[float]] = collections.defaultdict(collections.deque)
    results: dict[int, collections.deque[float]] = collections.defaultdict(collections.deque)
    for operations in bundles:
        for kind, unit, rows in operations:
            if kind == "push":
                pushed[unit] = max(now, pushed[unit]) + units.push
            elif kind == "pop":
                if results[unit]:
                    now = max(now, results[unit].popleft())
            else:
                while len(starts[unit]) >= QUEUE:
                    now = max(now, starts[unit].popleft())
                # The first product after a push waits for the matrix.
                start = max(now, free[unit], pushed[unit] if kind == "first" else 0)
                starts[unit].append(start)
                free[unit] = start + rows * units.row
                results[unit].extend(
                    start + units.latency + 8 * part * units.row for part in range(rows // 8)
                )
        now += 1
    return now


class _Bundle(typing.NamedTuple):
    """Of a text: its depth in loops, whether it begins one, what it gives to matrix units."""

    depth: int
    begins: bool
    operations: list[Operation]
    text: str


def _read(text: str) -> Iterator[_Bundle]:
    for line in text.splitlines():
        if match := re.match(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:\s*(>*)\s*\{", line):
            found = re.findall(r"v(matmul[\w.]*?|matpush[\w.]*?|pop\.f32\.mrf)\.mxu(\d)", line)
            operations = [_operation(name, int(unit)) for name, unit in found]
            yield _Bundle(len(match[2]), match[1] == "LB" and bool(match[2]), operations, line)


def _turns(bundles: Iterable[_Bundle], depth: int) -> int:
    """How often the loop that begins here turns, by its exit test; 1 where that is computed."""
    staged = False
    for bundle in bundles:
        if bundle.depth < depth:
            break
        if bundle.depth == depth:
            staged |= "stage = " in bundle.text
            if match := re.search(r"totalorder %\S+, (\d+) /\* loop exit test", bundle.text):
                # A loop in stages turns twice more, to fill and to empty them.
                return max(1, int(match[1]) - 2 * staged)
    return 1


def _operation(name: str, unit: int) -> Operation:
    if "push" in name:
        kind = "push"
    elif "pop" in name:
        kind = "pop"
    else:
        kind = "first" if "vlgmr" in name or "dwg" in name else "next"
    return kind, unit, 16 if "bf16" in name else 8  # rows of a register


@functools.cache
def _folder() -> pathlib.Path:
    scratch.remove_leftovers()
    made = scratch.Scratch()
    atexit.register(made.remove)
    return made.folder
