import gc
import itertools
import time

import numpy as np
import psutil
import pytest
from support import batches, datasets

from nest_dist.data import pipeline, segments


def batch(number):
    return {
        "image": np.full((4, 5, 5, 3), number, np.uint8),
        "label": np.arange(4, dtype=np.int64) + number,
        "weight": np.float32(number),
        "positions": str(number),
    }


@pytest.fixture
def ends():
    receiver = segments.Receiver()
    yield segments.Sender(receiver.prefix), receiver
    receiver.close()


def test_a_batch_arrives_as_it_was_sent(ends):
    sender, receiver = ends
    found = receiver(sender(batch(3)))
    assert set(found) == set(batch(3))
    for name, value in batch(3).items():
        np.testing.assert_array_equal(found[name], value)
    assert found["label"].dtype == np.int64
    assert all(found[name].flags.aligned for name in ("image", "label"))


def test_a_segment_is_used_again_when_nothing_of_its_batch_is_in_use(ends):
    sender, receiver = ends
    first = sender(batch(0))
    kept = receiver(first)["image"][1:]  # a view of a view
    second = sender(batch(1))
    assert second.segment != first.segment
    receiver(second)
    assert sender(batch(2)).segment == second.segment
    assert (kept == 0).all()
    del kept
    gc.collect()
    assert sender(batch(3)).segment == first.segment


def test_a_larger_batch_gets_a_segment_of_its_own(ends):
    sender, receiver = ends
    small = sender(batch(0))
    receiver(small)
    large = sender({"image": np.ones((8, 50, 50, 3), np.uint8)})
    assert large.segment != small.segment
    assert receiver(large)["image"].sum() == 8 * 50 * 50 * 3


def test_what_was_sent_and_never_received_is_removed(ends):
    sender, receiver = ends
    received = receiver(sender(batch(0)))
    sent = segments.FOLDER / sender(batch(1)).segment
    assert sent.exists()
    receiver.close()
    assert not sent.exists()
    np.testing.assert_array_equal(received["image"], batch(0)["image"])


def test_workers_take_few_segments_for_many_batches(tmp_path):
    source = datasets.opened("array_record", tmp_path, pictures_each=30)
    data = pipeline.TrainingData(
        source, batches.RECIPE, workers=2, threads=1, read_ahead_bytes=400_000
    )
    loaded = data.batches(source, seed=0, global_batch=64, rows=np.arange(64), first_step=0)
    for _ in itertools.islice(loaded, 40):
        pass
    places = [each.path for each in psutil.Process().memory_maps()]
    loaded.close()
    # Of each worker one is in the making, one in each queue, one at each end, and one is in use.
    assert 2 <= sum(place.startswith("/dev/shm/nest_") for place in places) <= 12


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_outlive_the_worker_that_made_them(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.secrets, "token_hex", lambda _: "outlived")
    source = datasets.opened("array_record", tmp_path, pictures_each=30)

    def labels(workers, pause):
        data = pipeline.EvaluationData(source, batches.RECIPE, workers=workers, threads=1)
        loaded = data.batches(source, global_batch=16, rows=np.arange(16))
        found = []
        for each in loaded:
            time.sleep(pause)
            pause = 0  # workers have long ended when the second batch is asked for
            found.append(each["label"])
        loaded.close()
        return np.stack(found)

    np.testing.assert_array_equal(labels(workers, 3), labels(0, 0))
    assert not list(segments.FOLDER.glob("nest_outlived*"))
