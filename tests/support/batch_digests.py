"""A program for the launcher's tests: prints the sha256 of global batches, from process 0.

It takes the place of `nest-dist train`: same flags, same wiring, no step. With `--jobs` it reads
several runs one after the other, one in a line of JSON: a name, bindings, first step, steps.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags

from nest_dist.base import failures
from nest_dist.cluster import processes, supervisor
from nest_dist.experiment import build
from nest_dist.experiment import run as runs


def main():
    values = flags.FlagValues()
    flags.DEFINE_multi_string("gin_file", [], "", flag_values=values)
    flags.DEFINE_multi_string("gin_bindings", [], "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_integer("first_step", 0, "", flag_values=values)
    flags.DEFINE_integer("num_steps", 60, "", flag_values=values)
    flags.DEFINE_string("jobs", None, "", flag_values=values)
    values(sys.argv)
    flags.FLAGS.mark_as_parsed()
    jobs = [("batch", [], values.first_step, values.num_steps)]
    if values.jobs:
        jobs = [*map(json.loads, pathlib.Path(values.jobs).read_text().splitlines())]
    with supervisor.Supervisor() as watching:
        watching.start(values.coordinator, values.num_processes, values.process_id, 300)
        for name, bindings, first_step, num_steps in jobs:
            configured = runs.load(values.gin_file, [*values.gin_bindings, *bindings])
            print_digests(configured, name, range(first_step, first_step + num_steps))


def print_digests(configured, name, steps):
    experiment = build.build(configured)
    whole = jax.jit(lambda x: x, out_shardings=experiment.sharding.replicated())
    batches = experiment.training_batches(steps.start)
    for step in steps:
        batch = next(batches)
        contents = [np.asarray(whole(batch[name])).tobytes() for name in sorted(batch)]
        digest = hashlib.sha256(b"".join(contents))
        if processes.is_primary():
            print(name, step, digest.hexdigest(), flush=True)
    batches.close()


if __name__ == "__main__":
    main()
    failures.end_now(0)
