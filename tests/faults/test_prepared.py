"""Real photographs all the way: JPEGs in tar archives, prepared, trained on, killed, resumed."""

import random

import pytest
from support import archives, commands, datasets, photographs, program

from nest_dist.data import decode

RUN = """
include 'data/array_record.gin'
include 'model/nest_micro.gin'
include 'recipe/adamw.gin'
include 'mesh/data_parallel.gin'
import nest_dist.data.crop
import nest_dist.data.randaugment
import nest_dist.train.mixing
import nest_dist.train.pixels

num_classes = 3
Run.model = @NesT()
NesT.num_channels = 3
NesT.dim = 8
NesT.heads = 1
NesT.block_repeats = (1, 1)
NesT.stochastic_depth = 0.2

TrainingData.transforms = (@RandomResizedCrop(), @Flip(), @RandAugment())
RandomResizedCrop.side = 32
RandomResizedCrop.area = (0.05, 1.0)
RandAugment.translation = 14
EvaluationData.transforms = (@ResizedCentreCrop(),)
ResizedCentreCrop.side = 32
ResizedCentreCrop.shorter_side = 40
Run.mixing = @Mixing()
Mixing.mixup_alpha = 0.8
Mixing.cutmix_alpha = 1.0
Run.label_smoothing = 0.1
Run.pixels = @Pixels()
Pixels.mean = (0.485, 0.456, 0.406)
Pixels.standard_deviation = (0.229, 0.224, 0.225)

AdamW.peak_learning_rate = 1e-3
AdamW.warmup_epochs = 1
Run.global_batch = 24
Run.num_epochs = 5
Run.evaluate_every_epochs = 5
Run.save_every_epochs = 0.5
Run.keep = @Keep()
Keep.last = 100
Run.log_every_steps = 1
"""
STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """96 photographs of 480 x 300 and more for training, 9 for evaluation, prepared."""
    root = tmp_path_factory.mktemp("photographs")
    for split, each in (("train", 32), ("validation", 3)):
        pictures = []
        for name in datasets.CLASSES:
            whole = photographs.photograph(name)
            for number in range(each):
                part = whole[number : number + 260 + number, 2 * number : 380 + number]
                jpeg = decode.encode(part.copy(), "jpeg")
                pictures.append((f"{name}/{split}_{number:03d}.JPEG", 0, jpeg))
        archive = root / f"{split}.tar"
        archive.write_bytes(archives.tar_of_tars(pictures))
        flags = (f"--output={root / 'data'}", f"--split={split}")
        program.succeeds("prepare", archive, *flags, "--shards=3")
        program.succeeds("prepare", "--verify", *flags)
    return root / "data"


def test_a_run_on_prepared_photographs_is_killed_and_goes_on_as_if_nothing_had_been(
    data, tmp_path, monkeypatch
):
    # Compiling once, and quickly, is enough.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    run = tmp_path / "run.gin"
    run.write_text(f"data_folder = {str(data)!r}\n{RUN}")

    def started(workdir):
        return commands.Local(1, 1, f"--gin_file={run}", f"--workdir={workdir}")

    with started(tmp_path / "whole") as whole:
        status, output = whole.wait()
    assert status == 0, output
    assert f"step {STEPS}/{STEPS}" in output
    workdir = tmp_path / "killed"
    step = random.randint(6, 14)
    print(f"killed after step {step}")
    with started(workdir) as launcher:
        commands.wait_for_step(workdir, step, launcher)
        for process in launcher.processes():
            process.kill()
        status, output = launcher.wait()
    assert status == 137, output
    with started(workdir) as launcher:
        status, output = launcher.wait()
    assert status == 0, output
    assert "resuming after step" in output
    assert sorted(commands.losses(workdir)) == list(range(1, STEPS + 1))
    commands.assert_same_bits(commands.arrays(workdir), commands.arrays(tmp_path / "whole"))
    # The photographs were looked at, and not only once.
    losses = commands.losses(workdir)
    assert len(set(losses.values())) == STEPS
