import gc
import itertools

import numpy as np
import psutil
import pytest
from support import batches, datasets, harness

from nest_dist.base import failures
from nest_dist.data import batch as contract
from nest_dist.data import pipeline, shm_pool


def batch(number):
    return {
        "image": np.full((4, 5, 5, 3), number, np.uint8),
        "label": np.arange(4, dtype=np.int64) + number,
        "weight": np.full(4, number, np.float32),
    }


@pytest.fixture
def ends():
    receiver = shm_pool.Receiver()
    yield shm_pool.Sender(receiver.prefix), receiver
    receiver.close()


def test_a_batch_arrives_as_it_was_sent(ends):
    sender, receiver = ends
    received_batch = receiver(sender(batch(3)))
    assert set(received_batch) == set(batch(3))
    for name, value in batch(3).items():
        np.testing.assert_array_equal(received_batch[name], value)
    assert received_batch["label"].dtype == np.int64
    assert all(received_batch[name].flags.aligned for name in ("image", "label"))


def test_a_segment_is_reused_when_no_array_of_its_batch_is_in_use(ends):
    sender, receiver = ends
    first = sender(batch(0))
    view = receiver(first)["image"][1:]  # a view of a view
    second = sender(batch(1))
    assert second.segment != first.segment
    receiver(second)
    assert sender(batch(2)).segment == second.segment
    assert (view == 0).all()
    del view
    gc.collect()
    assert sender(batch(3)).segment == first.segment


def test_what_a_killed_process_left_is_removed_by_the_next_start():
    code = (
        "import multiprocessing, os, signal; import numpy as np\n"
        "from nest_dist.data import shm_pool\n"
        "receiver = shm_pool.Receiver()\n"
        "shm_pool.Sender(receiver.prefix)({'label': np.zeros(3)})\n"
        "kept = multiprocessing.get_context('spawn').Semaphore()\n"
        "print(receiver.prefix, flush=True); os.killpg(os.getpid(), signal.SIGKILL)"
    )
    prefix = harness.python("-c", code, environment=harness.environment()).stdout.strip()
    # Another start on this host, as of a test beside this one, may already have removed them.
    assert len(list(shm_pool.FOLDER.glob(f"*{prefix}*"))) in (0, 3)
    living = shm_pool.Receiver()
    segment = shm_pool.Sender(living.prefix)(batch(0)).segment
    shm_pool.Receiver().close()
    assert list(shm_pool.FOLDER.glob(f"*{prefix}*")) == []
    assert (shm_pool.FOLDER / segment).exists()
    living.close()
    assert list(shm_pool.FOLDER.glob(f"{living.prefix}*")) == []


def test_shared_memory_that_is_too_small_is_foreseen():
    shm_pool.require_room("TrainingData", 2, 1)
    with pytest.raises(
        failures.BadInput,
        match=r"/dev/shm has \d+ bytes that can be written, and 2 TrainingData.workers share up to",
    ):
        shm_pool.require_room("TrainingData", 2, 1 << 60)


def test_a_larger_batch_gets_a_segment_of_its_own(ends):
    sender, receiver = ends
    small = sender(batch(0))
    receiver(small)
    large = sender({"image": np.ones((8, 50, 50, 3), np.uint8)})
    assert large.segment != small.segment
    assert receiver(large)["image"].sum() == 8 * 50 * 50 * 3


def test_a_batch_that_was_never_received_is_removed(ends):
    sender, receiver = ends
    received = receiver(sender(batch(0)))
    sent = shm_pool.FOLDER / sender(batch(1)).segment
    assert sent.exists()
    receiver.close()
    assert not sent.exists()
    np.testing.assert_array_equal(received["image"], batch(0)["image"])


@pytest.mark.slow
def test_workers_take_few_segments_for_many_batches(tmp_path):
    source = datasets.opened("array_record", tmp_path, pictures_each=30)
    data = pipeline.TrainingData(
        batches.Opened(source), batches.RECIPE, workers=2, threads=1, read_ahead_bytes=400_000
    )
    loaded = data.batches(source, seed=0, global_batch=64, rows=np.arange(64), first_step=0)
    for _ in itertools.islice(loaded, 40):
        pass
    paths = [mapping.path for mapping in psutil.Process().memory_maps()]
    loaded.close()
    # For each worker: one in the making, one in each queue, one at each end, and one in use.
    assert 2 <= sum(path.startswith("/dev/shm/nest_") for path in paths) <= 12


@pytest.mark.medium
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_outlive_the_worker_that_made_them(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(shm_pool.secrets, "token_hex", lambda _: "outlived")
    source = datasets.opened("array_record", tmp_path, pictures_each=30)

    def labels(workers):
        before = set(psutil.Process().children(recursive=True))
        data = pipeline.EvaluationData(
            batches.Opened(source), batches.RECIPE, workers=workers, threads=1
        )
        loaded = data.batches(source, global_batch=16, rows=np.arange(16))
        arrived = []
        for received in loaded:
            if not arrived:
                started = set(psutil.Process().children(recursive=True)) - before
                harness.wait_until(lambda made=started: not any(map(loads, made)), "their end")
            arrived.append(received["label"])
        loaded.close()
        return np.stack(arrived)

    np.testing.assert_array_equal(labels(workers), labels(0))
    assert not list(shm_pool.FOLDER.glob("nest_outlived*"))


def loads(process):
    """Whether a process is a worker that has not ended."""
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


KILLED = """
import os, signal
import numpy as np
from nest_dist.data import shm_pool
receiver = shm_pool.Receiver()
shm_pool.Sender(receiver.prefix)({"label": np.zeros(9)})
print(receiver.prefix, flush=True)
os.killpg(0, signal.SIGKILL)  # else a helper of multiprocessing removes the segment
"""


def test_a_start_without_workers_removes_what_killed_processes_have_left():
    done = harness.python(
        "-c", KILLED, environment=harness.environment(PYTHONPATH=harness.module_path())
    )
    prefix = done.stdout.strip()
    assert prefix.startswith("nest_")
    source = contract.Arrays(np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, int), ("a",))
    assert batches.training(source, steps=1, global_batch=4, transforms=())
    assert not list(shm_pool.FOLDER.glob(f"*{prefix}*"))
