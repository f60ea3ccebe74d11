"""Our speed on a GPU, a line of JSON for each batch and part; see gpu_speed.py."""

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from support import drawn, family, layouts, paper

from nest_dist.base import chips, tree_paths
from nest_dist.model import flops, on_cpu, on_gpu
from nest_dist.pretrained import weights


def main():
    size, form, batches = sys.argv[1:]
    device = jax.devices()[0]
    if form == "cudnn" and device.platform == "cpu":
        sys.exit("cuDNN needs a GPU")
    if size == "errors":
        print(error(form))
        return
    for batch in map(int, batches.split(",")):
        for part, seconds, used, needed in measured(size, form, batch):
            chip = chips.of_kind(device.device_kind)
            speed = batch / seconds
            row = {"part": part, "batch": batch, "speed": speed, "flops": speed * needed}
            row["share"] = speed * needed / chip.bfloat16_flops if chip else None
            print(json.dumps({**row, "bytes": used}), flush=True)


def measured(size, form, batch):
    """Name, seconds, peak bytes so far and FLOPs an image of each part."""
    if size in family.SMALL or size == "small":
        model = family.small("multi_head", compute_dtype="bfloat16", kernels=form)
    else:
        model = family.published(size, stochastic_depth=0.2, compute_dtype="bfloat16", kernels=form)
    H, W = model.geometry().image_sides
    rng = np.random.default_rng(0)
    layout = layouts.layout()
    images = jnp.asarray(rng.standard_normal((batch, H, W, 3), np.float32))
    labels = jnp.asarray(rng.integers(0, model.num_classes, batch), jnp.int32)
    options = on_gpu.COMPILER_OPTIONS
    if jax.default_backend() == "cpu":
        options = on_cpu.compiler_options()
    training = family.training_step(model, layout)
    state = jax.jit(training.init, out_shardings=layout.replicated())()
    forward = jax.jit(model.apply, compiler_options=options)
    params = jax.tree.map(jnp.copy, state.params)
    yield (
        "forward",
        timed(lambda: forward({"params": params}, images)),
        used_bytes(),
        2 * flops.multiply_adds(model),
    )
    train = jax.jit(training, donate_argnums=0, compiler_options=options)
    given = {"image": images, "label": labels}

    def once():
        nonlocal state
        state, metrics = train(state, given)
        return state, metrics

    yield "train step", timed(once), used_bytes(), flops.training_flops(model)


def timed(run):
    """Seconds of one call, after one that compiles and one more."""
    for _ in range(2):
        jax.block_until_ready(run())
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < 1.5:
        result = run()
        calls += 1
        if calls % 8 == 0:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def used_bytes():
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def error(form):
    """The largest difference of logits, and the largest logit."""
    found = []
    # cuDNN's attention has no float32.
    for dtype in ("bfloat16",) if form == "cudnn" else ("float32", "bfloat16"):
        model = family.small("multi_head", compute_dtype=dtype, kernels=form)
        params = family.random_params(model)
        images = drawn.images("the gpu", (2, 32, 32, 3))
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(jax.jit(model.apply)({"params": params}, images), np.float64)
        official = weights.to_format("official", tree_paths.flatten(params), model)
        expected = paper.forward(official, images, model.block_repeats, model.gelu)
        worst, largest = np.abs(logits - expected).max(), np.abs(expected).max()
        found.append(f"{dtype} {worst:.1e} of {largest:.1f}")
    return ", ".join(found)


main()
