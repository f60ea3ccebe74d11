"""What libraries print, and what Python prints, in two places."""

import sys

from support import harness

from nest_dist.cluster import library_output

PROGRAM = """
import os, sys
import jax
from nest_dist.cluster import library_output
jax.process_count = lambda: 2
for folder in sys.argv[1:]:
    with library_output.diverted(folder):
        print("a loss")
        os.write(1, b"[Gloo] Rank 0 is connected\\n")
        os.write(2, b"an error\\n")
    print("after")
"""


def test_what_libraries_print_goes_to_the_log_and_what_cannot_go_there_stays(tmp_path):
    folders = [tmp_path, tmp_path, tmp_path / "missing", "gs://bucket/run"]
    command = [sys.executable, "-c", PROGRAM, *map(str, folders)]
    done = harness.run(command, environment=harness.environment(), succeeds=True)
    diverted = ["a loss", "after"]
    stays = ["a loss", "[Gloo] Rank 0 is connected", "after"]
    assert done.stdout.splitlines() == [*diverted, *diverted, *stays, *stays]
    assert (tmp_path / library_output.NAME).read_text() == 2 * "[Gloo] Rank 0 is connected\n"
    assert done.stderr == 4 * "an error\n"
