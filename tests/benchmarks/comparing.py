"""What a comparison of replicas, and the pulse of a process, cost its steps.

    .venv/bin/python tests/benchmarks/comparing.py

Two processes train a model whose step takes about 100 ms on one core, and take turns: a number of
steps, as they are and with one comparison among them (`Watch.compare_every_steps` is this number).
The share is that of turns next to each other, by the clock and by the processor time of a process.
A comparison every 1,000 steps takes a tenth of that every 100. The pulse, which each second tells
the leader how far the process is, is timed on its own, with what the leader makes of it.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
from support import harness

from nest_dist.checkpointing import replicas
from nest_dist.cluster import activity, discovery, pace, processes, protocol
from nest_dist.experiment import build
from nest_dist.experiment import run as runs

# Of the quick start, wider and with more examples.
BINDINGS = ("NesT.dim = 96", "Run.global_batch = 64")
PULSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    options = parser.parse_args()
    if options.coordinator is None:
        command = [sys.executable, __file__, f"--rounds={options.rounds}"]
        command.append(f"--steps={options.steps}")
        with harness.Group.of(2, command, environment=harness.environment()) as group:
            group.wait()
            print(group.processes[0].said())
        return
    hosts = (options.coordinator, options.num_processes, options.process_id)
    processes.start(discovery.find(*hosts, wait_seconds=60))
    compare(options.rounds, options.steps)
    if processes.is_primary():
        pulse()


def compare(rounds: int, steps: int) -> None:
    """Prints the times of a step, and the share that one comparison takes of a turn."""
    experiment = build.build(runs.load(["runs/quickstart.gin"], BINDINGS))
    step, state = experiment.compiled_train_step(), experiment.init_state()
    batches = experiment.training_batches(0)
    batch = next(batches)
    batches.close()

    def turn(compared: bool) -> tuple[float, float]:
        nonlocal state
        jax.block_until_ready(state)
        started, used = time.perf_counter(), time.process_time()
        for number in range(steps):
            if compared and number == steps // 2:
                replicas.require_equal(state.params, number)
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - started, time.process_time() - used

    turn(True)  # compiles
    without, with_one = zip(*((turn(False), turn(True)) for _ in range(rounds)), strict=True)
    if not processes.is_primary():
        return
    for index, name in enumerate(("clock", "processor")):
        pairs = [(a[index], b[index]) for a, b in zip(without, with_one, strict=True)]
        alone = statistics.median(a for a, _ in pairs) / steps
        share = statistics.median(b / a - 1 for a, b in pairs)
        print(
            f"{name}: a step takes {1000 * alone:.0f} ms; one comparison in {steps} steps adds "
            f"{share:.2%}"
        )


def pulse() -> None:
    """Prints what a pulse takes at both of its ends."""
    own, paces = activity.Activity(), pace.Pace()
    started = time.perf_counter()
    for tick in range(PULSES):
        line = protocol.encode("pulse", tick=tick, held=False, **own.status())
        told = protocol.decode(line, protocol.FROM_PROCESS)
        paces.add(0, tick, told["tick"], told["waited"])
        paces.slow(tick)
    each = (time.perf_counter() - started) / PULSES
    share = each / protocol.PULSE_SECONDS
    print(f"a pulse takes {1e6 * each:.0f} microseconds, {share:.3%} of a core")


if __name__ == "__main__":
    main()
