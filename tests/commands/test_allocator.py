"""Freed memory serves the next allocation."""

import sys

import pytest
from support import harness

PROGRAM = """
import resource, sys, threading
import numpy as np
from nest_dist.base import allocator

def allocate():
    np.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(10_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if "keep" in sys.argv:
    allocator.keep_freed()
if "thread" in sys.argv:
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
else:
    allocate()
"""


def page_faults(*arguments):
    """Of five large arrays after a first one."""
    return int(harness.python("-c", PROGRAM, *arguments).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_the_memory_of_a_large_array_serves_the_next_one(where):
    assert page_faults("keep", where) * 10 < page_faults(where)
