"""Cycles of kernels by the instructions that the compiler has scheduled for them.

The compiler estimates no kernel. But it can write its final bundles: what a TPU starts together in
a cycle, unless it waits. The bundles of a v5e hold no wait for a matrix unit, whose results come
from a queue that makes the core wait; `waiting` replays the bundles with such queues.
"""

import collections
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence

import jax

from nest_dist.base import failures
from nest_dist.rehearsal import topology

FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*final.*"
)
SUFFIX = "final_bundles.txt"


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


def count(kernels: Sequence[jax.export.Exported], name: str) -> list[Bundles]:
    """The bundles of each kernel, compiled alone for a topology.

    libtpu reads its flags once, so another process compiles.

    Args:
        kernels: functions of one kernel each.
    """
    if not kernels:
        return []
    with tempfile.TemporaryDirectory(prefix="bundles-") as folder:
        for number, exported in enumerate(kernels):
            (pathlib.Path(folder) / str(number)).write_bytes(exported.serialize())
        flags = FLAGS.format(folder=pathlib.Path(folder) / "dump")
        environment = {**os.environ, "LIBTPU_INIT_ARGS": flags}
        command = [sys.executable, "-m", __name__, folder, name, str(len(kernels))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise failures.Failure(f"the compiler failed on a kernel: {done.stderr.strip()[-300:]}")
    return [Bundles(*map(int, line.split())) for line in done.stdout.splitlines()]


def of_text(text: str) -> Bundles:
    """The bundles of a step, from the text that the compiler writes.

    What lies inside a loop runs in each step of the grid; a grid of one step has no loop. Loops
    inside a step count once: those of kernels here wait for HBM.
    """
    read = list(_read(text))
    inside = [operations for depth, operations in read if depth > 0]
    bundles = inside or [operations for _, operations in read]
    return Bundles(len(bundles), *(round(waiting(bundles, units)) for units in (COMPILER, SLOWER)))


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


def _read(text: str) -> Iterator[tuple[int, list[Operation]]]:
    """The depth of each bundle in loops, and what it gives to matrix units."""
    for line in text.splitlines():
        if match := re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2}\s*)?:\s*(>*)\s*\{", line):
            found = re.findall(r"v(matmul[\w.]*?|matpush[\w.]*?|pop\.f32\.mrf)\.mxu(\d)", line)
            yield len(match[1]), [_operation(name, int(unit)) for name, unit in found]


def _operation(name: str, unit: int) -> Operation:
    if "push" in name:
        kind = "push"
    elif "pop" in name:
        kind = "pop"
    else:
        kind = "first" if "vlgmr" in name or "dwg" in name else "next"
    return kind, unit, 16 if "bf16" in name else 8  # rows of a register


def main(folder: str, name: str, number: str) -> None:
    """Compiles the kernels in a folder one by one and prints a line of bundles for each."""
    device = jax.sharding.SingleDeviceSharding(topology.devices(name)[0])
    dump = pathlib.Path(folder) / "dump"
    for kernel in range(int(number)):
        exported = jax.export.deserialize(
            bytearray((pathlib.Path(folder) / str(kernel)).read_bytes())
        )
        arguments = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=device)
            for aval in exported.in_avals
        ]
        known = set(dump.glob(f"*{SUFFIX}"))
        jax.jit(exported.call).lower(*arguments).compile()
        steps = [
            of_text(path.read_text(errors="replace"))
            for path in set(dump.glob(f"*{SUFFIX}")) - known
            if "schedule-analysis" not in path.name
        ]
        largest = max(steps, key=lambda step: step.issued)  # beside copies of arguments
        print(*dataclasses.astuple(largest), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
