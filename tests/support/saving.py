"""A program that saves a third checkpoint beside two and is killed, once at every write of it.

    python -m support.saving FOLDER

FOLDER/whole gets checkpoints 1 and 2; FOLDER/N is a copy of it in which the save of checkpoint 3
was killed at its N-th write, in the last one it was not.
"""

import itertools
import os
import pathlib
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.checkpointing import manager, retention


def state(step):
    """What checkpoint `step` holds."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "params": {
            name: jnp.asarray(rng.standard_normal((20, size)), jnp.float32)
            for name, size in (("small", 3), ("large", 5000))
        },
    }


def opened(folder):
    return manager.Manager(folder, retention.Retention(last=2))


def save(folder, *steps):
    checkpoints = opened(folder)
    for step in steps:
        checkpoints.save(step, state(step), {"configuration": ""})
    checkpoints.close()


def in_child(function, *arguments):
    """How a child ended that did this; nothing of JAX has started before it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    function(*arguments)
    os._exit(0)


def killed(folder, write):
    import sitecustomize

    sys.argv.append("--process_id=0")
    sitecustomize.arm(signal.SIGKILL, "0", write)
    save(folder, 3)


def main(folder):
    assert in_child(save, folder / "whole" / "checkpoints", 1, 2) == 0
    for write in itertools.count(1):
        copy = pathlib.Path(shutil.copytree(folder / "whole", folder / str(write)))
        if in_child(killed, copy / "checkpoints", write) == 0:
            return


if __name__ == "__main__":
    assert jax  # its import alone is shared by the children
    main(pathlib.Path(sys.argv[1]))
