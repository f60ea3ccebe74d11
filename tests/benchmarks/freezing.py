"""The training step of a whole model and of its head alone: seconds and memory on the CPU.

    .venv/bin/python tests/benchmarks/freezing.py

The steps take turns, so that the neighbours of this machine disturb both alike.
"""

import pathlib
import statistics
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from support import frozen

ROUNDS, STEPS = 9, 3


def main() -> None:
    made = {name: frozen.compiled(bindings) for name, bindings in frozen.STEPS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(ROUNDS + 1):
        for name, (step, state, batch) in made.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = step(state, batch)
                jax.block_until_ready((state, metrics))
            made[name] = step, state, batch
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / STEPS)
    print(f"{'trained':<12}{'ms a step':>12}{'MB of state':>14}{'MB of temporaries':>20}")
    for name, (step, state, _) in made.items():
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        temporary = frozen.temporary_bytes(step)
        middle = 1000 * statistics.median(seconds[name])
        print(f"{name:<12}{middle:>12.1f}{state_bytes / 1e6:>14.2f}{temporary / 1e6:>20.1f}")


if __name__ == "__main__":
    main()
