"""Twenty steps of a tiny run on one mesh after the other, with everything random switched on.

As a program it is one of several processes: it prints the losses on each mesh as a line of JSON.
"""

import dataclasses
import functools
import json
import os
import sys

import jax
from support import changing, commands

from nest_dist.base import tree_paths
from nest_dist.cluster import discovery, processes
from nest_dist.experiment import build, run
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs
from nest_dist.sharding import mesh as meshes
from nest_dist.train.augment import mixing

STEPS = 20
# Mesh axes, and fields of the model and of the run that change nothing but how it is computed.
MESHES = {
    "1": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "data=2 fsdp=4": {"data": 2, "fsdp": 4},
    "data=2 fsdp=2 tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "rows=2": {"rows": 2},
    "data=2 rows=4": {"data": 2, "rows": 4},
    "fsdp=2 microbatches=4": {"fsdp": 2, "microbatches": 4},
    "data=4 reproducible": {"data": 4, "microbatches": 2, "reproducible_reduction": True},
    "rows=8 scanned": {"rows": 8, "layers": "scanned", "remat": "layer"},
}


@functools.cache
def tiny() -> run.Run:
    """Two levels, 8 x 8 and 4 x 4 blocks, heads and rows enough for every mesh."""
    tiny = runs.load(
        ["runs/quickstart.gin"],
        [
            *commands.TINY,
            "NesT.patch_size = 1",
            "NesT.block_side = 2",
            "NesT.heads = 2",
            "NesT.block_repeats = (1, 2)",
            "NesT.stochastic_depth = 0.3",
            "NesT.attention_dropout = 0.1",
            "NesT.projection_dropout = 0.1",
        ],
    )
    mixed = {"step.inputs.mixing": mixing.Mixing(0.8, 1.0)}
    return changing.changed(tiny, {**mixed, "num_epochs": 0.5})


def built(shape, devices=None, base=None) -> experiments.Experiment:
    """The tiny run, or `base`, on a mesh over the first devices or over the given ones."""
    base, axes, fields = base or tiny(), dict(shape), {}
    for name in ("layers", "remat"):
        if name in axes:
            base = dataclasses.replace(base, model=base.model.clone(**{name: axes.pop(name)}))
    for name in ("microbatches", "reproducible_reduction"):
        if name in axes:
            fields[f"step.{name}"] = axes.pop(name)
    fields["mesh"] = meshes.MeshShape(**{"data": 1, "fsdp": 1, **axes})
    size = 1
    for length in axes.values():
        size *= length
    return build.build(changing.changed(base, fields), (devices or jax.devices())[:size])


def compiled(experiment):
    """The training step."""
    return experiment.compiled_train_step()


def losses(experiment, step, first=None, steps=STEPS):
    """Of each of the first steps, beginning with the parameters `first` if they are given."""
    state = experiment.init_state() if first is None else experiment.state_from(first)
    batches = experiment.training_batches(0)
    found = []
    try:
        for _ in range(steps):
            state, metrics = step(state, next(batches))
            found.append(float(metrics["train/loss"]))
    finally:
        batches.close()
    return found


def reproducible(devices, microbatches=1, steps=5):
    """Losses, lengths of gradients, and the state after some steps with the reduction for it."""
    base = changing.changed(
        tiny(), {"step.reproducible_reduction": True, "step.microbatches": microbatches}
    )
    experiment = built({"data": devices}, base=base)
    step = compiled(experiment)
    state = experiment.state_from(first_params())
    batches = experiment.training_batches(0)
    found = []
    try:
        for _ in range(steps):
            state, metrics = step(state, next(batches))
            found.append((metrics["train/loss"], metrics["train/gradient_norm"]))
    finally:
        batches.close()
    return jax.device_get((found, state))


@functools.cache
def first_params():
    """What every mesh begins with, made once."""
    return tree_paths.flatten(jax.device_get(built(MESHES["1"]).init_state().params))


def main(coordinator, num_processes, process_id, first, *names_of_meshes):
    """One of the processes; `first` is a file of parameters."""
    import numpy as np

    processes.start(discovery.find(coordinator, int(num_processes), int(process_id), 300))
    params = dict(np.load(first))
    here, there = (
        [device for device in jax.devices() if device.process_index == index] for index in range(2)
    )
    for name in names_of_meshes:
        # A mesh of two devices has one of each process.
        devices = [here[0], there[0]] if name == "rows=2" else None
        experiment = built(MESHES[name], devices)
        step = compiled(experiment)
        processes.barrier(name)
        found = losses(experiment, step, params)
        if processes.is_primary():
            print("losses", json.dumps({"mesh": name, "losses": found}), flush=True)
    # JAX aborts a process that outlives process 0.
    processes.barrier("end")
    if not processes.is_primary():
        os._exit(0)


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    main(*sys.argv[1:])
