"""A data set without an index, streamed over http by several processes."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from support import batches, commands, parquet, ports
from support.recording import Recording

from nest_dist.data import crop
from nest_dist.data.sources import huggingface

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
NesT.num_hierarchies = 1
NesT.block_repeats = (1,)
Run.global_batch = 8
Run.num_epochs = 1.12
Run.evaluate_every_epochs = 2
Run.save_every_epochs = 2
Run.log_every_steps = 1
AdamW.peak_learning_rate = 1e-3
AdamW.warmup_epochs = 0.1
"""
# The same batches, without a run.
TRANSFORMS = (crop.RandomResizedCrop(side=16, area=(0.05, 1.0)), crop.Flip())
TRAINING = {"global_batch": 8, "transforms": TRANSFORMS, "seed": 0}


def config(paths):
    return huggingface.HuggingFace("parquet", "train", 4, files=tuple(paths), block=4)


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
    reference, _ = batches.training(config(paths).open(), **TRAINING)
    assert digests(gin_file, processes, workers) == batches.digests(reference)


def test_a_run_goes_on_with_the_very_next_example_on_another_number_of_processes(
    paths, gin_file, tmp_path
):
    run = Recording(tmp_path, f"--gin_file={gin_file}")
    run.attempt(2, 1)
    metadata = json.loads((run.workdir / "checkpoints" / "5" / "metadata.json").read_text())
    assert sorted(metadata["data_positions"]) == ["0", "1", "2", "3"]
    said = run.attempt(1, 1, "--gin_bindings=Run.num_epochs = 2.23")
    assert "resuming after step 5" in said
    assert list(commands.losses(run.workdir)) == list(range(1, 11))
    unbroken, _ = batches.training(config(paths).open(), steps=10, **TRAINING)
    assert run.batches() == dict(enumerate(batches.digests(unbroken), start=1))
    lines = commands.metrics(run.workdir)
    assert {line["eval/examples"] for line in lines if "eval/examples" in line} == {36}


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
