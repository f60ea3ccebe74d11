"""Parquet over http, from a server that fails now and then, read by several processes."""

import itertools
import os
import pathlib
import re
import sys

import pytest
from support import batches, commands, fake_hub, harness, parquet
from support.recording import Recording

from nest_dist.data.sources import parquet as sources
from nest_dist.data.transforms import crop

RUN = """
include 'data/parquet.gin'
include 'model/nest_micro.gin'
include 'recipe/adamw.gin'
include 'mesh/data_parallel.gin'
import nest_dist.data.transforms.crop

num_classes = 3
evaluation_split = "train"
Parquet.files = {files}
Cache.folder = '{cache}'
train/Parquet.virtual_shards = 4
evaluate/Parquet.virtual_shards = 4
Parquet.window = 1
TrainingData.transforms = (@RandomResizedCrop(), @Flip())
EvaluationData.transforms = (@ResizedCentreCrop(),)
RandomResizedCrop.side = 16
RandomResizedCrop.area = (0.05, 1.0)
ResizedCentreCrop.side = 16
ResizedCentreCrop.shorter_side = 18
Inputs.normalize = @Normalize()
Normalize.mean = (0.5, 0.5, 0.5)
Normalize.std = (0.25, 0.25, 0.25)
Run.model = @NesT()
NesT.num_channels = 3
NesT.image_size = 16
NesT.dim = 8
NesT.heads = 1
NesT.num_hierarchies = 1
NesT.block_repeats = (1,)
Run.global_batch = 12
Run.num_epochs = 1.7
Evaluation.every_epochs = 2
Cadence.save_every_epochs = 2
Cadence.log_every_steps = 1
AdamW.peak_learning_rate = 1e-3
Cosine.warmup_epochs = 0.1
"""
# The same batches, without a run.
TRANSFORMS = (crop.RandomResizedCrop(side=16, area=(0.05, 1.0)), crop.Flip())
TRAINING = {"global_batch": 12, "transforms": TRANSFORMS, "seed": 0}


def config(paths):
    return sources.Parquet(tuple(paths), "train", virtual_shards=4, window=1)


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
        path = tmp_path_factory.mktemp("gin") / "parquet.gin"
        path.write_text(RUN.format(files=files, cache=path.parent / "cache"))
        yield path


def digests(gin_file, processes, workers, devices=1, first_step=0):
    """sha256 of three global batches, as process 0 of a run sees them, and all that was said."""
    program = [
        *(sys.executable, "-m", "support.batch_digests", f"--gin_file={gin_file}"),
        *(f"--gin_bindings=TrainingData.workers = {workers}", "--num_steps=3"),
        f"--first_step={first_step}",
    ]
    environment = harness.environment(devices, PYTHONPATH=harness.module_path())
    with harness.Group.of(processes, program, environment=environment) as group:
        assert group.wait() == [0] * processes, group.said()
        said = group.processes[0].said()
    return re.findall(r"^batch \d+ (\w{64})$", said, flags=re.MULTILINE), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "workers"),
    [(3, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 3), (2, 0), (4, 1)))],
)
def test_global_batches_do_not_depend_on_processes_and_workers(processes, workers, paths, gin_file):
    reference = batches.training(config(paths).open(), steps=7, **TRAINING)
    found, said = digests(gin_file, processes, workers, first_step=4)
    assert found == batches.digests(reference[4:])
    told = "since 3 processes do not divide 4 virtual shards; 1, 2, 4 processes do." in said
    assert told == (processes == 3)


@pytest.mark.slow
def test_a_run_goes_on_with_the_very_next_example_on_another_number_of_processes(
    paths, gin_file, tmp_path
):
    run = Recording(tmp_path, f"--gin_file={gin_file}")
    run.attempt(2, 1)
    said = run.attempt(1, 1, "--gin_bindings=Run.num_epochs = 3.34")
    assert "resuming after step 5" in said
    assert list(commands.losses(run.workdir)) == list(range(1, 11))
    unbroken = batches.training(config(paths).open(), steps=10, **TRAINING)
    assert run.batches() == dict(enumerate(batches.digests(unbroken), start=1))
    lines = commands.metrics(run.workdir)
    assert {line["eval/examples"] for line in lines if "eval/examples" in line} == {36}


@pytest.mark.slow
def test_too_little_memory_is_refused_before_compiling(gin_file, tmp_path):
    little = "--gin_bindings=EvaluationData.read_ahead_bytes = 9000"
    flags = (f"--gin_file={gin_file}", f"--workdir={tmp_path}", little)
    status, output = commands.local(2, 1, *flags)
    assert status == 2
    assert "EvaluationData.read_ahead_bytes is 9000, less than" in output
    assert "compiling" not in output


OPEN = """
from nest_dist.base import failures
from nest_dist.data.sources import parquet
for name in {names}:
    try:
        print(parquet.Parquet((name,), "train", attempts=1).open().fingerprint)
    except failures.BadInput as refusal:
        print(refusal)
"""


def test_a_data_set_of_the_hub_is_opened_by_its_name(paths, tmp_path):
    known, unknown = f"hf://datasets/{fake_hub.NAME}", "hf://datasets/someone/else"
    converted, none = f"hf://datasets/{fake_hub.CONVERTED}", f"hf://datasets/{fake_hub.EMPTY}"
    names = known, f"{known}@{fake_hub.COMMIT}/data", converted, unknown, none
    with fake_hub.served(pathlib.Path(paths[0]).parent) as server:
        hub = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
        done = harness.python(
            *("-c", OPEN.format(names=names)), environment=harness.environment(**hub)
        )
    assert done.returncode == 0, done.stderr
    *found, missing, empty = done.stdout.splitlines()
    assert found == [config(paths).open().fingerprint] * 3
    assert re.match(
        rf"{unknown} is not there or may not be read \(.*404.*\); correct its name", missing
    )
    assert empty == (
        f"{none} has no Parquet files, and the Hub has made none of it; use `nest-dist prepare`."
    )
    assert server.authorized == {"Bearer hf_secret"}
