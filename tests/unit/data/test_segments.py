import gc
import itertools
import pathlib

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
    sender, receiver = segments.Sender(), segments.Receiver()
    yield sender, receiver
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


def test_workers_take_few_segments_for_many_batches_and_leave_none(tmp_path):
    source = datasets.opened("array_record", tmp_path, pictures_each=30)
    data = pipeline.TrainingData(
        source, batches.RECIPE, workers=2, threads=1, read_ahead_bytes=1 << 20
    )
    loaded = data.batches(source, seed=0, global_batch=64, rows=np.arange(64), first_step=0)
    for _ in itertools.islice(loaded, 40):
        pass
    places = [each.path for each in psutil.Process().memory_maps()]
    used = [pathlib.Path(place) for place in places if place.startswith("/dev/shm/psm_")]
    loaded.close()
    assert 2 <= len(used) <= 20
    assert not any(path.exists() for path in used)
