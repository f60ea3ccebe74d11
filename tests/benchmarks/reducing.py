"""What `Step.reproducible_reduction` costs: steps with it and without it, on 2 and more devices.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 .venv/bin/python tests/benchmarks/reducing.py

Both train the quick start's model on the same batch in one process and take turns. Devices of a CPU
share its cores, so this shows what more is computed and copied, not what a network adds: each
device sends log2(devices) times the size of the parameters, where an all-reduce sends twice it.
"""

import argparse
import statistics
import time
import typing

import jax

from nest_dist.cluster import discovery, processes
from nest_dist.experiment import build
from nest_dist.experiment import run as runs


class Contender:
    """One way to train; turn by turn."""

    def __init__(self, devices: int, *bindings: str) -> None:
        run = runs.load(["runs/quickstart.gin"], [*bindings, "Run.global_batch = 128"])
        wired = build.build(run, jax.devices()[:devices])
        self._state: typing.Any = wired.init_state()
        batches = wired.training_batches(0)
        self._batch = next(batches)
        batches.close()
        self._step = wired.compiled_train_step()
        self.temporary_bytes = self._step.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def turn(self, steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - began) / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 8])
    options = parser.parse_args()
    processes.start(discovery.Peers())
    print("devices  a step without     with  ratio  temporary memory without      with")
    for devices in options.devices:
        pair = Contender(devices), Contender(devices, "Step.reproducible_reduction = True")
        for number in range(options.rounds + 1):
            for each in pair:
                each.turn(options.steps)
                if number == 0:
                    each.seconds.clear()
        plain, summed = (statistics.median(each.seconds) * 1e3 for each in pair)
        ratios = [b / a for a, b in zip(*(each.seconds for each in pair), strict=True)]
        without, with_it = (each.temporary_bytes / 1e6 for each in pair)
        print(
            f"{devices:7}{plain:13.1f} ms{summed:6.1f} ms{statistics.median(ratios):7.2f}"
            f"{without:23.1f} MB{with_it:7.1f} MB"
        )


if __name__ == "__main__":
    main()
