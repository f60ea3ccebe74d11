"""Reading ends when the batches are closed, in whatever state the storage is."""

import contextlib
import sys
import threading
import time

import numpy as np
import pytest
from support import batches, harness, parquet

from nest_dist.data import pipeline
from nest_dist.data.sources import parquet as sources
from nest_dist.data.sources import retries, row_cache

# A program of somebody's own, which knows nothing of commands or supervisors.
PROGRAM = """
import sys, threading, time
import numpy as np
from nest_dist.data import pipeline
from nest_dist.data.sources import parquet
from nest_dist.data.transforms import crop

config = parquet.Parquet((sys.argv[1],), "train", window=1)
data = pipeline.TrainingData(config, (crop.ResizedCentreCrop(8, 8),), threads=3)
source = config.open()
print("opened", flush=True)
sys.stdin.readline()  # the server dies
loaded = data.batches(source, seed=0, global_batch=4, rows=np.arange(4), first_step=0)
reader = threading.Thread(target=next, args=(loaded, None), daemon=True)
reader.start()
time.sleep(2)
assert reader.is_alive()  # it tries again
loaded.close()
print("closed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.medium
def test_a_plain_program_ends_soon_after_it_closes_batches_of_a_dead_server(tmp_path):
    (path,) = parquet.write(tmp_path, files=1)
    with parquet.served(tmp_path) as server:
        address = f"{server.address}/{path.rpartition('/')[2]}"
        process = harness.Process(
            [sys.executable, "-c", PROGRAM, address],
            environment=harness.environment(PYTHONPATH=harness.module_path()),
            stdin=-1,
        )
        harness.wait_until(lambda: "opened" in process.said(), process.said)
        server.fails = lambda _: 0  # also those connections end that are open
    with process:
        process.stdin.write(b"\n")
        process.stdin.flush()
        harness.wait_until(
            lambda: "closed" in process.said() or not process.running(), process.said
        )
        began = time.monotonic()
        assert process.wait() == 0, process.said()
        # Eight attempts with their pauses take a minute.
        assert time.monotonic() - began < 20
        assert "attempt 8" not in process.said()


@pytest.mark.parametrize("kind", ["examples", "row groups"])
def test_no_thread_reads_on_after_the_close(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 60.0)
    tried, failing = threading.Event(), [True]
    config = sources.Parquet(tuple(parquet.write(tmp_path)), "train")
    batches.training(config.open(), steps=1, global_batch=4)  # libraries start threads that stay
    source = config.open()
    name = {"examples": "__getitem__", "row groups": "_load"}[kind]
    read_well = getattr(type(source), name)

    def read_or_fail(*arguments):
        if not failing:
            return read_well(*arguments)
        tried.set()
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(type(source), name, read_or_fail)
        before = set(threading.enumerate())
        data = pipeline.TrainingData(batches.Opened(source), batches.RECIPE, threads=2)
        loaded = data.batches(source, seed=0, global_batch=4, rows=np.arange(4), first_step=0)

        def read():
            with contextlib.suppress(retries.Closed):
                next(loaded)

        threading.Thread(target=read).start()
        assert tried.wait(60)
        loaded.close()
        harness.wait_until(lambda: not set(threading.enumerate()) - before, "their end", 20)
    failing.clear()
    # The source itself can be read as ever.
    assert batches.training(source, steps=1, global_batch=4)


def test_what_one_closes_another_still_gets():
    first, second = retries.Closing(), retries.Closing()
    calls = []

    def fetch(number):
        calls.append(number)
        if len(calls) == 1:
            retries.Retries().run("a group", lambda: fail())
        return f"group {number}"

    def fail():
        raise ConnectionError("gone")

    cache = row_cache.RowCache(fetch, [1] * 4)
    with retries.until(first), cache.holding([0], [], 9):
        pass
    waiting = []

    def read():
        with retries.until(second):
            waiting.append(cache[0])

    thread = threading.Thread(target=read)
    thread.start()
    harness.wait_until(lambda: calls, "the first attempt")
    first.close()
    thread.join(20)
    assert waiting == ["group 0"]
    with retries.until(first), pytest.raises(retries.Closed):
        cache[1]
