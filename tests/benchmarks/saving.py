"""What saving NesT-B with AdamW costs: how long the loop stops, how long the save takes.

    JAX_PLATFORMS=cpu .venv/bin/python tests/benchmarks/saving.py

The loop here is an update of every parameter and moment in place, without a model: so nothing hides
that the devices, too, have something to do for a save. The loop is stopped from the call of `save`
until the devices are free again, and can begin the next update. The update after that shares the
cores with the writing, and is shown beside one that does not. The whole save ends when the
checkpoint would survive a power cut. The last line is what restoring takes, checked against
fingerprints, and how often it reads each byte.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import psutil

from nest_dist.checkpointing import manager, retention
from nest_dist.cluster import discovery, processes
from nest_dist.experiment import build
from nest_dist.experiment import run as runs

GIN_FILES = ("runs/nest_base_imagenet.gin", "data/synthetic.gin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=pathlib.Path, help="for checkpoints; else a temporary one")
    options = parser.parse_args()
    processes.start(discovery.Peers())
    bindings = ["Run.global_batch = 8", "Cosine.warmup_epochs = 0"]
    wired = build.build(runs.load(GIN_FILES, bindings))
    rng = np.random.default_rng(0)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    state = jax.tree.map(filled, wired.state_shapes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    update = jax.jit(
        lambda state: jax.tree.map(lambda x: x - x / 1024 if x.ndim else x, state),
        donate_argnums=0,
    )
    idle = jax.jit(lambda step: step + 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = manager.Manager(folder, retention.Retention(last=1))
        checkpoints.warmup(state)
        print(f"{size / 1e6:.0f} MB, {os.cpu_count()} cores")
        print("round  an update  loop stopped  next update  whole save  stopped/whole")
        ratios = []
        for number in range(1, options.rounds + 1):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                state = jax.block_until_ready(update(state))
                times.append(time.perf_counter() - began)
            plain = statistics.median(times)
            began = time.perf_counter()
            checkpoints.save(number, state, {"configuration": ""})
            jax.block_until_ready(idle(state.step))
            stopped = time.perf_counter() - began
            state = jax.block_until_ready(update(state))
            after = time.perf_counter() - began - stopped
            checkpoints.wait()
            whole = time.perf_counter() - began
            ratios.append(stopped / whole)
            seconds = f"{plain:10.2f} s{stopped:12.2f} s{after:11.2f} s{whole:10.2f} s"
            print(f"{number:5}{seconds}{ratios[-1]:14.1%}")
        print(f"median: the loop stops for {statistics.median(ratios):.1%} of a save")
        stored = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*"))
        before, began = psutil.Process().io_counters().read_chars, time.perf_counter()
        jax.block_until_ready(checkpoints.restore(options.rounds, wired.state_shapes))
        seconds, read = time.perf_counter() - began, psutil.Process().io_counters().read_chars
        print(
            f"restored in {seconds:.2f} s, reading each byte {(read - before) / stored:.2f} times"
        )
        checkpoints.close()


if __name__ == "__main__":
    main()
