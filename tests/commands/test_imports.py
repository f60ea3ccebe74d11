"""What a start does not import, since a restart waits for it."""

from support import harness

PROGRAM = """
import sys

import nest_dist.commands.train
from nest_dist.telemetry import writer

print(*sorted({"jax.experimental.pallas", "google.cloud.storage"} & sys.modules.keys()))
assert sys.modules.get("google.cloud.storage", "") is not None  # others may import it
"""


def test_a_start_imports_neither_kernels_nor_a_client_for_buckets():
    done = harness.python("-c", PROGRAM, environment=harness.environment())
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
