"""A data set without an index, streamed over http by several processes."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from support import batches, commands, parquet, ports

from nest_dist.commands import configuration, wiring
from nest_dist.data import crop
from nest_dist.data.sources import huggingface

GLOBAL_BATCH = 8
RUN = """
include 'data/huggingface.gin'
include 'model/nest_micro.gin'
include 'recipe/adamw.gin'
include 'mesh/data_parallel.gin'
import nest_dist.data.crop
import nest_dist.train.pixels

data_set = "parquet"
num_classes = 3
evaluation_split = "train"
HuggingFace.files = {files}
HuggingFace.virtual_shards = 4
train/HuggingFace.virtual_shards = 4
evaluate/HuggingFace.virtual_shards = 4
HuggingFace.block = 4
TrainingData.transforms = (@RandomResizedCrop(), @Flip())
EvaluationData.transforms = (@ResizedCentreCrop(),)
RandomResizedCrop.side = 16
RandomResizedCrop.area = (0.05, 1.0)
ResizedCentreCrop.side = 16
ResizedCentreCrop.shorter_side = 18
Run.pixels = @Pixels()
Pixels.mean = (0.5, 0.5, 0.5)
Pixels.standard_deviation = (0.25, 0.25, 0.25)
Run.model = @NesT()
NesT.num_channels = 3
NesT.image_size = 16
NesT.dim = 8
NesT.heads = 1
NesT.block_repeats = (1, 1)
Run.global_batch = 8
Run.num_epochs = 1.12
Run.evaluate_every_epochs = 2
Run.save_every_epochs = 2
Run.log_every_steps = 1
AdamW.peak_learning_rate = 1e-3
AdamW.warmup_epochs = 0.1
"""
TRANSFORMS = (crop.RandomResizedCrop(side=16, area=(0.05, 1.0)), crop.Flip())


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return parquet.write(tmp_path_factory.mktemp("parquet"), files=5)


@pytest.fixture(scope="module")
def gin_file(paths, tmp_path_factory):
    """A run that reads the files from a server which fails now and then."""
    folder = pathlib.Path(paths[0]).parent
    with parquet.served(folder) as server:
        answers = itertools.cycle((200, 200, 500, 200, 200, 200, 0))
        server.fails = lambda _: next(answers)
        files = tuple(f"{server.address}/{os.path.basename(path)}" for path in paths)
        path = tmp_path_factory.mktemp("gin") / "stream.gin"
        path.write_text(RUN.format(files=files))
        yield path


def digests(gin_file, processes, workers):
    """sha256 of the first three global batches, as process 0 of a run sees them."""
    port = ports.free()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment["PYTHONPATH"] = f"{commands.TOP}:{commands.TOP / 'tests'}"
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "support.batch_digests", f"--gin_file={gin_file}"),
                *(f"--gin_bindings=TrainingData.workers = {workers}", "--num_steps=3"),
                *(f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"),
                f"--process_id={index}",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(outputs)
    return re.findall(r"^batch \d+ (\w{64})$", outputs[0], flags=re.MULTILINE)


@pytest.mark.parametrize(("processes", "workers"), [(2, 2), (4, 0)])
def test_global_batches_do_not_depend_on_processes_and_workers(processes, workers, paths, gin_file):
    config = huggingface.HuggingFace("parquet", "train", 4, files=tuple(paths), block=4)
    reference, _ = batches.training(
        config.open(), global_batch=GLOBAL_BATCH, transforms=TRANSFORMS, seed=0
    )
    assert digests(gin_file, processes, workers) == batches.digests(reference)


# Summation in another order changes the last of 24 bits; ten steps of Adam enlarge that a little.
TOLERANCE = 2e-5


def test_a_run_goes_on_with_the_very_next_example_on_another_number_of_processes(
    gin_file, tmp_path
):
    flags = (f"--gin_file={gin_file}", f"--workdir={tmp_path}")
    status, output = commands.local(2, 1, *flags, timeout=600)
    assert status == 0, output
    metadata = json.loads((tmp_path / "checkpoints" / "5" / "metadata.json").read_text())
    saved = metadata["data_positions"]
    assert sorted(saved) == ["0", "1", "2", "3"]
    longer = "--gin_bindings=Run.num_epochs = 2.23"
    done = commands.nest_dist("train", *flags, longer, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stdout
    found = commands.losses(tmp_path)
    assert list(found) == list(range(1, 11))
    counts = [
        line["eval/examples"] for line in commands.metrics(tmp_path) if "eval/examples" in line
    ]
    assert set(counts) == {36}

    # The learning rate falls to 0 over the length of a run, so each part has its own.
    wired = [
        wiring.wire(configuration.load([str(gin_file)], list(bindings)))
        for bindings in ((), ("Run.num_epochs = 2.23",))
    ]
    unbroken = wired[1].training_batches(0)
    state, losses = wired[0].init_state(), {}
    for part, steps in zip(wired, (range(1, 6), range(6, 11)), strict=True):
        train_step = part.train_step()
        for step in steps:
            state, metrics = train_step(state, next(unbroken))
            losses[step] = float(metrics["train/loss"])
    unbroken.close()
    np.testing.assert_allclose(
        [found[step] for step in losses], list(losses.values()), rtol=TOLERANCE
    )


def test_more_processes_than_virtual_shards_are_refused_before_compiling(gin_file, tmp_path):
    few = "--gin_bindings=evaluate/HuggingFace.virtual_shards = 1"
    flags = (f"--gin_file={gin_file}", f"--workdir={tmp_path}", few)
    status, output = commands.local(2, 1, *flags, timeout=600)
    assert status == 2
    assert (
        "a process holds 4 rows of the batch, each of 1 virtual shards supplies 8, all to one "
        "process; set virtual_shards to a multiple of the processes."
    ) in output
    assert "compiling" not in output
