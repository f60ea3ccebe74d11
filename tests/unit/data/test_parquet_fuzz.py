"""Parquet under random settings: stopped, resumed, failing, on other numbers of processes."""

import os
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import requests
from support import batches

from nest_dist.data.sources import byte_ranges, parquet, retries
from nest_dist.data.transforms import crop, decode

SEED = int(os.environ.get("NEST_DIST_TEST_SEED") or random.randrange(1 << 31))
CENTRE = (crop.CentrePad(side=2),)


def write(rng, folder):
    """Files with rows of consecutive numbers, in row groups of random lengths."""
    paths, number = [], 0
    for file in range(rng.randint(1, 5)):
        path = folder / f"train-{file}.parquet"
        schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for _ in range(rng.randint(file == 0, 5)):
                count = rng.choice((1, 2, 7, 12, 30))
                pixels = [
                    np.full((1, 1, 3), (n >> 8, n % 256, 7), np.uint8)
                    for n in range(number, number + count)
                ]
                images = [decode.encode(image, "png") for image in pixels]
                columns = {"image": images, "label": [n % 5 for n in range(number, number + count)]}
                writer.write_table(pyarrow.table(columns, schema=schema))
                number += count
        paths.append(str(path))
    return tuple(paths), number


def failing(rng):
    """Reads of a file, of which one in five fails."""
    read, rng = byte_ranges.File.read, random.Random(rng.random())

    def read_or_fail(file, start, length):
        if rng.random() < 0.2:
            answer = requests.Response()
            answer.status_code = 503
            busy = requests.HTTPError("busy", response=answer)
            raise rng.choice((ConnectionError("gone"), EOFError("cut short"), busy))
        return read(file, start, length)

    return read_or_fail


def tried(rng, folder, monkeypatch):
    """One setting: the batches of an interrupted run are those of an undisturbed one."""
    paths, examples = write(rng, folder)
    shards = rng.choice([it for it in (1, 2, 3, 4, 8) if it <= examples])
    fits = [it for it in range(shards, examples + 1, shards) if it <= 48]
    global_batch = rng.choice(fits)
    config = parquet.Parquet(
        paths, "train", virtual_shards=shards, window=rng.randint(1, 4), num_classes=5, attempts=30
    )
    fields = {"global_batch": global_batch, "seed": rng.randrange(1 << 32), "transforms": CENTRE}
    steps = rng.randint(2, 2 + 2 * examples // global_batch)
    whole = batches.training(config.open(), steps=steps, threads=1, **fields)
    # Each epoch holds every example once.
    taken = np.concatenate([arrays["image"][:, 0, 0] for arrays in whole])
    if examples % global_batch == 0 and len(taken) >= examples:
        assert sorted(taken[:examples].astype(int) @ (256, 1, 0)) == list(range(examples))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0001)
    monkeypatch.setattr(byte_ranges.File, "read", failing(rng))
    resumed = batches.interrupted(rng, config, steps=steps, **fields)
    assert batches.digests(resumed) == batches.digests(whole)


@pytest.mark.parametrize(
    "settings", [6, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_run_that_is_disturbed_has_the_batches_of_one_that_is_not(
    settings, tmp_path, monkeypatch
):
    print("NEST_DIST_TEST_SEED", SEED)
    for number in range(settings):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patched:
            try:
                tried(random.Random(SEED + number), folder, patched)
            except BaseException:
                print("setting", number, "of seed", SEED)
                raise
