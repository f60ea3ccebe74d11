"""Memory that fails: `import support.flipping` flips a bit of a parameter on one process.

FLIP is "PROCESS STEP": where, and after which step.
"""

import dataclasses
import itertools
import os

import jax
import numpy as np

from nest_dist.experiment import experiment as experiments

_compiled = experiments.Experiment.compiled_train_step


def _compiled_and_flipping(self):
    step, numbers = _compiled(self), itertools.count(1)
    process, flipped_after = map(int, os.environ["FLIP"].split())

    def flipping(state, batch):
        state, metrics = step(state, batch)
        if next(numbers) == flipped_after and jax.process_index() == process:
            leaves, tree = jax.tree.flatten(state.params)
            leaves[0] = _flipped(leaves[0])
            print("flipped a bit", flush=True)
            state = dataclasses.replace(state, params=jax.tree.unflatten(tree, leaves))
        return state, metrics

    return flipping


def _flipped(leaf):
    shards = []
    for shard in leaf.addressable_shards:
        data = np.array(shard.data)
        # The lowest bits may be lost when the next update is rounded.
        data.reshape(-1).view(np.uint32)[0] ^= 1 << 20
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


experiments.Experiment.compiled_train_step = _compiled_and_flipping
