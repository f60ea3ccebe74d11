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

from nest_dist.base import memory
from nest_dist.model import axes, on_cpu
from nest_dist.train import optimizer, state, step

BATCH = 16


def main() -> None:
    memory.keep_freed()  # as every command does
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
    rule = optimizer.AdamW(1e-3, 0).build(lambda _: 1e-3, axes.NOT_DECAYED)
    train_step = jax.jit(
        step.train_step(
            lambda params, images, key, rows: model.apply(
                {"params": params}, images, train=True, rows=rows, rngs={"dropout": key}
            ),
            lambda images, targets, key, rows: (images, targets),
            rule,
            lambda _: jnp.float32(1e-3),
            layout,
            num_classes=1000,
            label_smoothing=0.0,
            seed=0,
        ),
        donate_argnums=0,
        compiler_options=on_cpu.compiler_options(),
    )
    forward = jax.jit(model.apply, compiler_options=on_cpu.compiler_options())
    params = jax.jit(model.init)({"params": jax.random.key(0)}, batch["image"][:1])["params"]
    now = jax.device_put(state.first(rule, False, params), layout.sharding((), ()))

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
