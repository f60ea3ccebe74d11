"""Twenty steps of a tiny run on one mesh after the other, with everything random switched on.

As a program it is one of several processes: it prints the losses on each mesh as a line of JSON.
"""

import dataclasses
import functools
import json
import sys

import jax
from support import commands

from nest_dist.base import names
from nest_dist.commands import configuration, run, wiring
from nest_dist.parallel import hosts
from nest_dist.parallel import mesh as meshes
from nest_dist.train import mixing

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
    tiny = configuration.load(
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
    return dataclasses.replace(tiny, mixing=mixing.Mixing(0.8, 1.0), num_epochs=0.5)


def wire(shape, devices=None, base=None) -> wiring.Wiring:
    """The tiny run, or `base`, on a mesh over the first devices or over the given ones."""
    changed = base or tiny()
    shape, fields = dict(shape), {}
    fields["model"] = changed.model.clone(
        **{name: shape.pop(name) for name in ("layers", "remat") if name in shape}
    )
    for name in ("microbatches", "reproducible_reduction"):
        if name in shape:
            fields[name] = shape.pop(name)
    fields["mesh"] = meshes.MeshShape(**{"data": 1, "fsdp": 1, **shape})
    size = 1
    for length in shape.values():
        size *= length
    return wiring.wire(dataclasses.replace(changed, **fields), (devices or jax.devices())[:size])


def compiled(wired):
    """The training step."""
    batch, _ = wired.batch_shapes()
    return wired.train_step().lower(wired.shapes, batch).compile()


def losses(wired, step, first=None):
    """Of each of the steps, beginning with the parameters `first` if they are given."""
    state = wired.init_state() if first is None else wired.state_from(first)
    batches = wired.training_batches(0)
    found = []
    try:
        for _ in range(STEPS):
            state, metrics = step(state, next(batches))
            found.append(float(metrics["train/loss"]))
    finally:
        batches.close()
    return found


def reproducible(devices, microbatches=1, steps=5):
    """Losses, lengths of gradients, and the state after some steps with the reduction for it."""
    base = dataclasses.replace(tiny(), reproducible_reduction=True, microbatches=microbatches)
    wired = wire({"data": devices}, base=base)
    step = compiled(wired)
    state = wired.state_from(first_params())
    batches = wired.training_batches(0)
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
    return names.flatten(jax.device_get(wire(MESHES["1"]).init_state().params))


def main(coordinator, num_processes, process_id, first, *names_of_meshes):
    """One of the processes; `first` is a file of parameters."""
    import numpy as np

    hosts.start(coordinator, int(num_processes), int(process_id))
    params = dict(np.load(first))
    here, there = (
        [device for device in jax.devices() if device.process_index == index] for index in range(2)
    )
    for name in names_of_meshes:
        # A mesh of two devices has one of each process.
        devices = [here[0], there[0]] if name == "rows=2" else None
        wired = wire(MESHES[name], devices)
        step = compiled(wired)
        hosts.barrier(name)
        found = losses(wired, step, params)
        if hosts.lead():
            print("losses", json.dumps({"mesh": name, "losses": found}), flush=True)


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    main(*sys.argv[1:])
