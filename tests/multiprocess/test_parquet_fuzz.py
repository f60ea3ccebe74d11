"""Remote data in real processes under random settings: each batch is that of an undisturbed run.

Parquet and tars, parts, mixtures and repeated examples come from a server that fails, through a
cache that all settings share. Groups of processes read a piece of each setting in turn, and some of
them are killed; the next group goes on where it got to.
"""

import json
import os
import random
import re
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import archives, batches, harness, parquet

from nest_dist.data import parts
from nest_dist.data.sources import mixture, tars
from nest_dist.data.sources import parquet as sources
from nest_dist.data.transforms import crop, decode

GIN_FILES = (
    *("data/parquet.gin", "model/nest_micro.gin"),
    *("recipe/adamw.gin", "mesh/data_parallel.gin"),
)
BINDINGS = (
    *("data_set = 'unused'", "evaluation_split = 'train'", "num_classes = 5"),
    *("TrainingData.transforms = (@CentrePad(),)", "EvaluationData.transforms = (@CentrePad(),)"),
    *("CentrePad.side = 8", "NesT.image_size = 8", "NesT.num_channels = 3", "NesT.patch_size = 4"),
    *("NesT.num_hierarchies = 1", "NesT.block_repeats = (1,)", "NesT.dim = 8", "NesT.heads = 1"),
    *("Normalize.mean = (0.5, 0.5, 0.5)", "Normalize.std = (0.25, 0.25, 0.25)"),
    *("Run.num_epochs = 9", "Evaluation.every_epochs = 9", "Cadence.save_every_epochs = 9"),
    *("AdamW.peak_learning_rate = 1e-3", "Cosine.warmup_epochs = 0.1"),
)
FORMS = {
    "Parquet": ("Parquet.attempts = 30", "evaluate/Parquet.virtual_shards = 1"),
    "Tars": (
        "import nest_dist.data.sources.tars",
        *("EvaluationData.source = @evaluate/Tars()", "evaluate/Tars.split = 'train'"),
        "Tars.cache = @Cache()",
    ),
}
SETTINGS = 20
PART, OTHERS = "[!::3]", "[::3]"
NAMES, WEIGHTS = ("one", "two"), ((0, (3, 1)), (5, (1, 2)))


def write_parquet(rng, folder, count):
    """Files with rows of consecutive numbers, in row groups of random lengths."""
    schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
    number = 0
    for file in range(rng.randint(1, 4)):
        name = f"train-{file}.parquet"
        with pyarrow.parquet.ParquetWriter(folder / name, schema) as writer:
            for _ in range(rng.randint(1, 4)):
                rows = range(number, min(count, number + rng.choice((3, 12, 24, 40))))
                columns = {"image": [png(row) for row in rows], "label": [row % 5 for row in rows]}
                writer.write_table(pyarrow.table(columns, schema=schema))
                number = rows.stop
        yield name
    if number < count:
        columns = {"image": [png(row) for row in range(number, count)]}
        columns["label"] = [row % 5 for row in range(number, count)]
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), folder / "rest.parquet")
        yield "rest.parquet"


def write_tars(rng, folder, count):
    """Tars with every n-th of the same pictures."""
    files = rng.randint(1, 4)
    for file in range(files):
        members = []
        for row in range(file, count, files):
            members += [(f"{row}.cls", b"%d" % (row % 5)), (f"{row}.png", png(row))]
        (folder / f"train-{file}.tar").write_bytes(archives.tar_bytes(members))
        yield f"train-{file}.tar"


def png(row):
    return decode.encode(np.full((1, 1, 3), (row >> 8, row % 256, 7), np.uint8), "png")


class Setting:
    """Files, windows and shards, and what of its batches has been read so far."""

    def __init__(self, rng, folder):
        folder.mkdir()
        self.folder = folder
        self.form = rng.choice(("Parquet", "Parquet", "Tars"))
        self.examples = rng.randint(48, 120)
        make = write_parquet if self.form == "Parquet" else write_tars
        self.names = [*make(rng, folder, self.examples)]
        self.global_batch = rng.choice((12, 24))
        self.shards = rng.choice((1, 2, 3, 4, 6))
        self.window = rng.randint(1, 4)
        self.seed = rng.randrange(1 << 32)
        self.steps = rng.randint(4, 9)
        self.drawn = rng.choice(("all", "balanced", "part", "mixture"))
        self.repeats = 2 if self.global_batch % (2 * self.shards) == 0 and rng.random() < 0.4 else 1
        self.digests = {}

    @property
    def left(self):
        return self.steps - len(self.digests)

    def undisturbed(self):
        """Digests of its batches, read from the files by one process."""
        paths = tuple(str(self.folder / name) for name in self.names)
        config = tars.Tars(paths, "train", num_classes=5)
        if self.form == "Parquet":
            config = sources.Parquet(
                paths, "train", virtual_shards=self.shards, window=self.window, num_classes=5
            )
        if self.drawn == "part":
            config = parts.Part(config, PART)
        if self.drawn == "mixture":
            both = parts.Part(config, PART), parts.Part(config, OTHERS)
            config = mixture.Mixture(both, NAMES, WEIGHTS)
        whole = batches.training(
            config.open(),
            config=config,
            balanced=self.drawn == "balanced",
            repeats=self.repeats,
            steps=self.steps,
            global_batch=self.global_batch,
            seed=self.seed,
            transforms=(crop.CentrePad(side=8),),
        )
        return batches.digests(whole)

    def bindings(self, address, workers):
        files = tuple(f"{address}/{self.folder.name}/{name}" for name in self.names)
        window = [f"Parquet.window = {self.window}"] if self.form == "Parquet" else []
        return [
            *FORMS[self.form],
            *(f"{self.form}.files = {files}", f"{self.form}.num_classes = 5"),
            *self.source_bindings(),
            *window,
            f"TrainingData.repeats = {self.repeats}",
            f"TrainingData.balanced = {self.drawn == 'balanced'}",
            f"Run.global_batch = {self.global_batch}",
            f"Run.seed = {self.seed}",
            f"TrainingData.workers = {workers}",
        ]

    def source_bindings(self):
        form = self.form
        shards = ("train", "one", "two") if form == "Parquet" else ()
        bindings = [f"{scope}/Parquet.virtual_shards = {self.shards}" for scope in shards]
        if self.drawn != "mixture":
            part = PART if self.drawn == "part" else ""
            source = f"TrainingData.source = @train/{form}()"
            return [*bindings[:1], source, f"train/{form}.split = 'train{part}'"]
        return [
            *bindings[1:],
            *("import nest_dist.data.sources.mixture", "TrainingData.source = @Mixture()"),
            f"Mixture.sources = (@one/{form}(), @two/{form}())",
            *(f"Mixture.names = {NAMES}", f"Mixture.weights = {WEIGHTS}"),
            *(f"one/{form}.split = 'train{PART}'", f"two/{form}.split = 'train{OTHERS}'"),
        ]


def read_on(rng, settings, address, folder, environment):
    """One group of processes reads on in all settings that are not complete, or is killed."""
    processes, waiting = rng.choice((1, 2, 3, 4)), [it for it in settings if it.left]
    is_killed, jobs = rng.random() < 0.5, []
    for setting in rng.sample(waiting, len(waiting)):
        workers = rng.choice((0, 0, 0, 0, 0, 2))
        count = rng.randint((setting.left + 1) // 2, setting.left)
        first = len(setting.digests)
        jobs.append((setting.folder.name, setting.bindings(address, workers), first, count))
    (folder / "jobs").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    bindings = (*BINDINGS, f"Cache.folder = '{folder / 'cache'}'", "Cache.max_bytes = 60000")
    program = [
        *(sys.executable, "-m", "support.batch_digests", f"--jobs={folder / 'jobs'}"),
        *(f"--gin_file={name}" for name in GIN_FILES),
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]
    steps = sum(count for *_, count in jobs)
    enough = rng.randint(1, steps) if is_killed else steps
    print(f"{processes} processes, {len(jobs)} settings, {enough} of {steps} steps", flush=True)
    with harness.Group.of(processes, program, environment=environment) as group:
        if is_killed:
            harness.wait_until(
                lambda: len(printed(group)) >= enough or not group.running(), group.said
            )
            assert len(printed(group)) >= enough, group.said()
        else:
            assert group.wait(1800) == [0] * processes, group.said()
        found = printed(group)
    for setting in settings:
        own = {step: digest for name, step, digest in found if name == setting.folder.name}
        assert list(own) == list(range(len(setting.digests), len(setting.digests) + len(own)))
        setting.digests |= own


def printed(group):
    """Names, steps and digests of complete lines."""
    lines = re.findall(r"^(\d+) (\d+) (\w{64})\n", group.processes[0].said(), flags=re.MULTILINE)
    return [(name, int(step), digest) for name, step, digest in lines]


@pytest.mark.slow
def test_disturbed_runs_of_several_processes_have_the_batches_of_an_undisturbed_one(
    rng, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    count = int(os.environ.get("NEST_DIST_FUZZ_SETTINGS", SETTINGS))
    settings = [Setting(rng, tmp_path / str(number)) for number in range(count)]
    environment = harness.environment(
        PYTHONPATH=harness.module_path(), XDG_CACHE_HOME=str(tmp_path / "home")
    )
    began = time.monotonic()
    with parquet.served(tmp_path) as server:
        failing, statuses = random.Random(rng.random()), (500, 503, 429, 0)
        server.fails = lambda _: failing.choice(statuses) if failing.random() < 0.05 else 200
        while any(setting.left for setting in settings):
            read_on(rng, settings, server.address, tmp_path, environment)
    print(f"{count} settings in {time.monotonic() - began:.0f} s")
    for setting in settings:
        about = setting.form, setting.drawn, setting.examples, setting.shards, setting.window
        assert [*setting.digests.values()] == setting.undisturbed(), about
