"""A program for the launcher's tests: prints the sha256 of global batches, from process 0.

It takes the place of `nest-dist train`: same flags, same wiring, no step.
"""

import hashlib
import sys

import jax
import numpy as np
from absl import flags

from nest_dist.commands import configuration, wiring
from nest_dist.parallel import hosts, watch


def main():
    values = flags.FlagValues()
    flags.DEFINE_multi_string("gin_file", [], "", flag_values=values)
    flags.DEFINE_multi_string("gin_bindings", [], "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_integer("first_step", 0, "", flag_values=values)
    flags.DEFINE_integer("num_steps", 60, "", flag_values=values)
    values(sys.argv)
    flags.FLAGS.mark_as_parsed()
    configured = configuration.load(values.gin_file, values.gin_bindings)
    with watch.Watch() as watching:
        hosts.start(values.coordinator, values.num_processes, values.process_id)
        watching.connect()
        wired = wiring.wire(configured)
        whole = jax.jit(lambda x: x, out_shardings=wired.layout.replicated())
        batches = wired.training_batches(values.first_step)
        for step in range(values.first_step, values.first_step + values.num_steps):
            batch = next(batches)
            contents = [np.asarray(whole(batch[name])).tobytes() for name in sorted(batch)]
            digest = hashlib.sha256(b"".join(contents))
            if hosts.lead():
                print("batch", step, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
