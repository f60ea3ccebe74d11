"""Our images a second, one round for each line that comes in; see model_speed.py."""

import json
import math
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from support import family, layouts

from nest_dist.base import allocator
from nest_dist.model import on_cpu

BATCH = 16


def main() -> None:
    allocator.keep_freed()  # as every command does
    # A device for each core, as JAX_NUM_CPU_DEVICES gives every command.
    jax.config.update("jax_num_cpu_devices", math.gcd(BATCH, os.cpu_count() or 1))
    layout = layouts.layout(data=jax.device_count())
    model = family.published("nest_tiny", stochastic_depth=0.2)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.standard_normal((BATCH, 224, 224, 3), np.float32)),
        "label": jnp.asarray(rng.integers(0, 1000, BATCH), jnp.int32),
    }
    batch = {
        name: jax.device_put(x, layout.sharding(("batch",) + (None,) * (x.ndim - 1), x.shape))
        for name, x in batch.items()
    }
    training = family.training_step(model, layout)
    train_step = jax.jit(training, donate_argnums=0, compiler_options=on_cpu.compiler_options())
    forward = jax.jit(model.apply, compiler_options=on_cpu.compiler_options())
    now = jax.jit(training.init, out_shardings=layout.replicated())()

    def train() -> None:
        nonlocal now
        now, metrics = train_step(now, batch)
        jax.block_until_ready((now, metrics))

    def infer() -> None:
        jax.block_until_ready(forward({"params": now.params}, batch["image"]))

    for _ in sys.stdin:
        speeds = {}
        for name, run, times in (("train step", train, 2), ("forward", infer, 3)):
            start = time.perf_counter()
            for _ in range(times):
                run()
            speeds[name] = times * BATCH / (time.perf_counter() - start)
        print(json.dumps(speeds), flush=True)


main()
