"""Parquet in real processes under random settings: every batch is that of an undisturbed run."""

import os
import random
import re
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import batches, harness, parquet

from nest_dist.data import parts
from nest_dist.data.sources import mixture
from nest_dist.data.sources import parquet as sources
from nest_dist.data.transforms import crop, decode

GIN_FILES = (
    *("data/parquet.gin", "model/nest_micro.gin"),
    *("recipe/adamw.gin", "mesh/data_parallel.gin"),
)
BINDINGS = (
    *("data_set = 'unused'", "evaluation_split = 'train'", "num_classes = 5"),
    *("Parquet.num_classes = 5", "Parquet.attempts = 30", "evaluate/Parquet.virtual_shards = 1"),
    *("TrainingData.transforms = (@CentrePad(),)", "EvaluationData.transforms = (@CentrePad(),)"),
    *("CentrePad.side = 8", "NesT.image_size = 8", "NesT.num_channels = 3", "NesT.patch_size = 4"),
    *("NesT.num_hierarchies = 1", "NesT.block_repeats = (1,)", "NesT.dim = 8", "NesT.heads = 1"),
    *("Normalize.mean = (0.5, 0.5, 0.5)", "Normalize.std = (0.25, 0.25, 0.25)"),
    *("Run.num_epochs = 9", "Evaluation.every_epochs = 9", "Cadence.save_every_epochs = 9"),
    *("AdamW.peak_learning_rate = 1e-3", "Cosine.warmup_epochs = 0.1"),
)
SETTINGS = 20
PART, OTHERS = "[!::3]", "[::3]"
NAMES, WEIGHTS = ("one", "two"), ((0, (3, 1)), (5, (1, 2)))


def write(rng, folder):
    """Files with rows of consecutive numbers, in row groups of random lengths."""
    names, number = [], 0
    schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
    for file in range(rng.randint(1, 5)):
        path = folder / f"train-{file}.parquet"
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for _ in range(rng.randint(1, 4)):
                rows = range(number, number + rng.choice((1, 3, 12, 24, 40)))
                pixels = [np.full((1, 1, 3), (row >> 8, row % 256, 7), np.uint8) for row in rows]
                images = [decode.encode(image, "png") for image in pixels]
                columns = {"image": images, "label": [row % 5 for row in rows]}
                writer.write_table(pyarrow.table(columns, schema=schema))
                number = rows.stop
        names.append(path.name)
    return names, number


class Setting:
    """Files, windows and shards; and how a run over them is disturbed."""

    def __init__(self, rng, folder):
        folder.mkdir()
        self.rng, self.folder = rng, folder
        self.names, self.examples = write(rng, folder)
        while self.examples < 48:  # a part has two thirds
            self.names, self.examples = write(rng, folder)
        self.global_batch = rng.choice((12, 24))
        self.shards = rng.choice((1, 2, 3, 4, 6))
        self.window = rng.randint(1, 4)
        self.seed = rng.randrange(1 << 32)
        self.steps = rng.randint(4, 12)
        self.drawn = rng.choice(("all", "part", "mixture"))
        self.repeats = 2 if self.global_batch % (2 * self.shards) == 0 and rng.random() < 0.4 else 1

    def undisturbed(self):
        """Digests of its batches, read from the files by one process."""
        paths = tuple(str(self.folder / name) for name in self.names)
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
            repeats=self.repeats,
            steps=self.steps,
            global_batch=self.global_batch,
            seed=self.seed,
            transforms=(crop.CentrePad(side=8),),
        )
        return batches.digests(whole)

    def disturbed(self):
        """Digests by step of runs one after the other, from a server that fails."""
        digests = {}
        with parquet.served(self.folder) as server:
            failing = random.Random(self.rng.random())
            statuses = (500, 503, 429, 0)
            server.fails = lambda _: failing.choice(statuses) if failing.random() < 0.1 else 200
            while len(digests) < self.steps:
                left = self.steps - len(digests)
                count = left if len(digests) else self.rng.randint(1, left - 1)
                processes, workers = self.rng.choice((1, 2, 3, 4)), self.rng.choice((0, 2))
                is_killed = self.rng.random() < 0.5 and count < left
                print(f"{processes} processes, {workers} workers, {count} of {left} steps")
                wanted = left if is_killed else count
                program = self.program(server.address, workers, len(digests), wanted)
                environment = harness.environment(PYTHONPATH=harness.module_path())
                with harness.Group.of(processes, program, environment=environment) as group:
                    if is_killed:
                        harness.wait_until(
                            lambda group=group, count=count: (
                                len(printed(group)) >= count or not group.running()
                            ),
                            group.said,
                        )
                        assert len(printed(group)) >= count, group.said()
                    else:
                        assert group.wait() == [0] * processes, group.said()
                    digests |= printed(group)
        return digests

    def program(self, address, workers, first_step, steps):
        files = tuple(f"{address}/{name}" for name in self.names)
        bindings = (
            *BINDINGS,
            f"Parquet.files = {files}",
            *self.source_bindings(),
            f"TrainingData.repeats = {self.repeats}",
            f"Parquet.window = {self.window}",
            f"Run.global_batch = {self.global_batch}",
            f"Run.seed = {self.seed}",
            f"TrainingData.workers = {workers}",
        )
        return [
            *(sys.executable, "-m", "support.batch_digests"),
            *(f"--gin_file={name}" for name in GIN_FILES),
            *(f"--gin_bindings={binding}" for binding in bindings),
            *(f"--first_step={first_step}", f"--num_steps={steps}"),
        ]

    def source_bindings(self):
        if self.drawn != "mixture":
            part = PART if self.drawn == "part" else ""
            split = f"train/Parquet.split = 'train{part}'"
            return (split, f"train/Parquet.virtual_shards = {self.shards}")
        return (
            *("import nest_dist.data.sources.mixture", "TrainingData.source = @Mixture()"),
            "Mixture.sources = (@one/Parquet(), @two/Parquet())",
            *(f"Mixture.names = {NAMES}", f"Mixture.weights = {WEIGHTS}"),
            *(f"one/Parquet.split = 'train{PART}'", f"two/Parquet.split = 'train{OTHERS}'"),
            *(f"{scope}/Parquet.virtual_shards = {self.shards}" for scope in ("one", "two")),
        )


def printed(group):
    """Digests of complete lines, by step."""
    lines = re.findall(r"^batch (\d+) (\w{64})\n", group.processes[0].said(), flags=re.MULTILINE)
    return {int(step): digest for step, digest in lines}


@pytest.mark.slow
def test_disturbed_runs_of_several_processes_have_the_batches_of_an_undisturbed_one(rng, tmp_path):
    for number in range(int(os.environ.get("NEST_DIST_FUZZ_SETTINGS", SETTINGS))):
        setting = Setting(rng, tmp_path / str(number))
        print(
            f"setting {number}: {setting.examples} examples in {len(setting.names)} files, "
            f"{setting.shards} shards, window {setting.window}, {setting.steps} steps of "
            f"{setting.global_batch}"
        )
        assert setting.disturbed() == dict(enumerate(setting.undisturbed()))
