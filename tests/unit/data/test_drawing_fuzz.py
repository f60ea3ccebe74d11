"""Parts, mixtures, tars, balanced and repeated drawing together, stopped and resumed anywhere.

Some files are remote: on a server that fails, behind a small cache that all settings share.
"""

import os
import random
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import archives, batches
from support import parquet as parquet_files

from nest_dist.data import batch, index, parts
from nest_dist.data.sources import mixture, parquet, range_cache, retries, tars
from nest_dist.data.transforms import crop, decode

SEED = int(os.environ.get("NEST_DIST_TEST_SEED") or random.randrange(1 << 31))
CENTRE = (crop.CentrePad(side=2),)
CLASSES = tuple(map(str, range(5)))
PNGS = [
    decode.encode(np.full((1, 1, 3), (it >> 8, it % 256, 7), np.uint8), "png") for it in range(400)
]


def anywhere(rng, folder, suffix, server):
    """The files of a folder: as they are, or as a server has them, perhaps with a cache."""
    if rng.random() < 0.5:
        return {"files": (str(folder),)}
    cache = range_cache.Cache(str(server.root / "cache"), rng.choice((2_000, 20_000, 1 << 20)))
    names = sorted(path.relative_to(server.root).as_posix() for path in folder.glob(f"*{suffix}"))
    files = tuple(f"{server.address}/{name}" for name in names)
    return {"files": files, "cache": rng.choice((None, cache, cache))}


def of_parquet(rng, folder, count, shards, server):
    groups = rng.choice((1, 2, 7, 12))
    table = pyarrow.table({"image": PNGS[:count], "label": [it % 5 for it in range(count)]})
    pyarrow.parquet.write_table(table, folder / "train.parquet", row_group_size=groups)
    fields = {"virtual_shards": shards, "window": rng.randint(1, 4), "num_classes": 5}
    fields |= anywhere(rng, folder, ".parquet", server)
    return parquet.Parquet(split="train", attempts=30, **fields)


def of_tars(rng, folder, count, shards, server):
    files = rng.randint(1, 3)
    for number in range(files):
        members = []
        for it in range(number, count, files):
            members += [(f"{it}.cls", str(it % 5).encode()), (f"{it}.png", PNGS[it])]
        (folder / f"train-{number}.tar").write_bytes(archives.tar_bytes(members))
    return tars.Tars(split="train", num_classes=5, **anywhere(rng, folder, ".tar", server))


def in_memory(rng, folder, count, shards, server):
    """Encoded pictures without keys."""

    class Source(batch.Source):
        class_names, fingerprint = CLASSES, f"{count}"

        def __len__(self):
            return count

        def __getitem__(self, number):
            return {"image": PNGS[number], "labels": (number % 5,)}

    return batches.Opened(Source())


def part(rng, config, count):
    """Of at least half the examples."""
    bound = rng.randint(0, count // 4)
    text = rng.choice(
        (f"[{bound}:]", f"[:-{bound + 1}]", "[10%:80.5%]", "[::2]", "[!::3]", "[!5:9:2]")
    )
    return parts.Part(config, text)


def drawn(rng, folder, server):
    """A configured source, and how batches are drawn from it."""
    shards, configs = rng.choice((1, 2, 3, 4)), []
    for number in range(rng.choice((1, 1, 2, 3))):
        at, count = folder / f"source-{number}", rng.randint(60, 120)
        at.mkdir()
        make = rng.choice((of_parquet, of_parquet, of_tars, in_memory))
        config = make(rng, at, count, shards, server)
        configs.append(part(rng, config, count) if rng.random() < 0.5 else config)
    repeats = rng.choice((1, 1, 2, 3))
    fields = {
        "repeats": repeats,
        "global_batch": shards * repeats * rng.randint(1, 12 // repeats // shards + 1),
    }
    if len(configs) > 1:
        weights = tuple(
            (step, tuple(rng.choice((1, 2, 3, 49)) for _ in configs))
            for step in (0, rng.randint(1, 9))
        )
        names = tuple(f"source-{number}" for number in range(len(configs)))
        return mixture.Mixture(tuple(configs), names, weights), fields
    if configs[0].open().read_labels() is not None and rng.random() < 0.5:
        fields["balanced"] = True
    return configs[0], fields


def tried(rng, folder, server):
    """One setting: the batches of an interrupted run are those of an undisturbed one."""
    config, fields = drawn(rng, folder, server)
    fields |= {"config": config, "seed": rng.randrange(1 << 32), "transforms": CENTRE}
    steps = rng.randint(2, 20)
    whole = batches.training(config.open(), steps=steps, threads=1, **fields)
    resumed = batches.interrupted(rng, config, steps=steps, **fields)
    assert batches.digests(resumed) == batches.digests(whole)


@pytest.mark.medium
@pytest.mark.parametrize(
    "settings", [6, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_run_that_is_interrupted_has_the_batches_of_one_that_is_not(
    settings, tmp_path, monkeypatch
):
    print("NEST_DIST_TEST_SEED", SEED)
    monkeypatch.setattr(index.OneByOne, "_shuffled", property(batches.Shuffled))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0001)
    monkeypatch.setattr(retries.logging.Logger, "warning", lambda *_: None)  # of each failure
    monkeypatch.setattr(range_cache, "FREE_FRACTION", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    failing = random.Random(SEED)
    with parquet_files.served(tmp_path) as server:
        server.fails = lambda _: failing.choice((503, 0)) if failing.random() < 0.05 else 200
        for number in range(settings):
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                tried(random.Random(SEED + number), folder, server)
            except BaseException:
                print("setting", number, "of seed", SEED)
                raise
            shutil.rmtree(folder)
