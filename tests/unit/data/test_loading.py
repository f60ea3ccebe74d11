import contextlib
import gc
import itertools
import os

import numpy as np
import psutil
import pytest
from support import batches, datasets, parquet

from nest_dist.base import failures
from nest_dist.data import loading, pipeline
from nest_dist.data.sources import huggingface

GLOBAL_BATCH = 64


def started(source, **fields):
    data = pipeline.TrainingData(source, batches.RECIPE, **fields)
    rows = np.arange(GLOBAL_BATCH)
    return data.batches(source, seed=0, global_batch=GLOBAL_BATCH, rows=rows, first_step=0)


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
        failures.Failure,
        match=r"a data worker process has ended \(.*\); start the run again, with fewer "
        r"TrainingData\.workers if the host was out of memory or its /dev/shm is small\.",
    ):
        list(itertools.islice(loaded, 100))
    loaded.close()


@pytest.mark.parametrize(
    ("workers", "batch_bytes", "depths"),
    [
        # What is in the making in each worker, and what waits.
        (0, 100, (10, 0)),
        (0, 10, (16, 0)),
        (2, 100, (2, 1)),
        (2, 50, (2, 4)),
        (2, 160, (1, 1)),
    ],
)
def test_what_is_read_ahead_fits_the_memory_that_is_allowed(workers, batch_bytes, depths):
    how = loading.Loading("TrainingData", threads=2, workers=workers, read_ahead_bytes=1000)
    assert how.depths(batch_bytes) == depths
    making, waiting = depths
    assert max(1, workers) * (making + 2 * waiting) * batch_bytes <= 1000


def test_too_little_memory_for_the_workers_is_refused():
    how = loading.Loading("TrainingData", threads=2, workers=2, read_ahead_bytes=1000)
    with pytest.raises(
        failures.BadInput,
        match="is 1000, less than 6 batches of 300 bytes for 2 workers; raise it to 1800 or lower",
    ):
        how.depths(300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["array_record", "huggingface"])
def test_memory_stays_flat_over_many_examples(name, tmp_path):
    if name == "huggingface":
        paths = parquet.write(tmp_path, pictures_each=600)
        source = huggingface.HuggingFace("parquet", "train", 4, files=tuple(paths)).open()
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
