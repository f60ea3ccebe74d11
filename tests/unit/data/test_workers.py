import contextlib
import gc
import itertools
import os

import numpy as np
import psutil
import pytest
from support import batches, datasets, parquet

from nest_dist.base import failures
from nest_dist.data import pipeline, workers
from nest_dist.data.sources import parquet as parquet_source

GLOBAL_BATCH = 64


def started(source, **fields):
    data = pipeline.TrainingData(batches.Opened(source), batches.RECIPE, **fields)
    rows = np.arange(GLOBAL_BATCH)
    return data.batches(source, seed=0, global_batch=GLOBAL_BATCH, rows=rows, first_step=0)


@pytest.mark.medium
def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path):
    source = datasets.opened("array_record", tmp_path, pictures_each=30)
    before = set(psutil.Process().children(recursive=True))
    loaded = started(source, workers=1, threads=1)
    next(loaded)
    for process in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.Error):
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()
    with pytest.raises(
        failures.PeerLost,  # of which a restart makes another
        match=r"a data worker process has ended \(.*\); start the run again, with fewer "
        r"TrainingData\.workers if the host was out of memory or its /dev/shm is small\.",
    ):
        list(itertools.islice(loaded, 100))
    loaded.close()


@pytest.mark.parametrize(
    ("processes", "batch_bytes", "depths"),
    [
        # Batches in the making in each worker, and batches that wait.
        (0, 100, (10, 0)),
        (0, 10, (16, 0)),
        (2, 100, (2, 1)),
        (2, 50, (2, 4)),
        (2, 160, (1, 1)),
    ],
)
def test_waiting_batches_fit_the_configured_memory(processes, batch_bytes, depths):
    pool = workers.WorkerPool("TrainingData", threads=2, workers=processes, read_ahead_bytes=1000)
    assert pool.depths(batch_bytes) == depths
    making, waiting = depths
    assert max(1, processes) * (making + 2 * waiting) * batch_bytes <= 1000


def test_too_little_memory_for_the_workers_is_refused():
    pool = workers.WorkerPool("TrainingData", threads=2, workers=2, read_ahead_bytes=1000)
    with pytest.raises(
        failures.BadInput,
        match="is 1000, less than 6 batches of 300 bytes for 2 workers; raise it to 1800 or lower",
    ):
        pool.depths(300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["array_record", "parquet"])
def test_memory_stays_flat_over_many_examples(name, tmp_path):
    if name == "parquet":
        paths = parquet.write(tmp_path, pictures_each=600)
        source = parquet_source.Parquet(tuple(paths), "train", virtual_shards=4).open()
    else:
        source = datasets.opened(name, tmp_path, pictures_each=30)
    loaded = started(source)
    sizes = []
    for step in range(200_000 // GLOBAL_BATCH):
        next(loaded)
        if step % 300 == 299:
            gc.collect()
            sizes.append(psutil.Process(os.getpid()).memory_info().rss / 2**20)
    loaded.close()
    print([round(size) for size in sizes], "MiB")
    # The caches of allocators fill at first; a leak of 100 bytes an example would be 15 MiB.
    assert max(sizes[-3:]) - max(sizes[3:6]) < 10
