"""README's way from ImageNet's archives to a run, with real photographs: prepared, trained on,
killed, resumed."""

import pathlib
import shlex
import signal
import sys

import pytest
from support import archives, commands, datasets, harness, photographs, readme

from nest_dist.data.transforms import decode

WORDNET = dict(zip(datasets.CLASSES, ("n01440764", "n01443537", "n01484850"), strict=True))
STEPS = 20
TINY = (
    "num_classes = 3",
    *("NesT.image_size = 32", "NesT.dim = 8", "NesT.heads = 1"),
    *commands.ONE_LEVEL,
    *("RandomResizedCrop.side = 32", "RandAugment.translation = 14"),
    *("ResizedCentreCrop.side = 32", "ResizedCentreCrop.shorter_side = 36"),
    *("Run.global_batch = 24", "Run.num_epochs = 5", "Cosine.warmup_epochs = 1"),
    *(
        "Evaluation.every_epochs = 5",
        "Cadence.save_every_epochs = 0.5",
        "Cadence.log_every_steps = 1",
    ),
)


def pictures(each):
    """JPEGs of real photographs, about 400 x 300, with the name of their class."""
    for name, wordnet in WORDNET.items():
        whole = photographs.photograph(name)
        for number in range(each):
            part = whole[number : number + 260 + number, 2 * number : 380 + number]
            yield wordnet, decode.encode(part.copy(), "jpeg")


@pytest.fixture
def folder(tmp_path):
    """What a user has after download: the archives, named and built as ImageNet's are."""
    training = [
        (f"{wordnet}/{wordnet}_{number}.JPEG", 0, jpeg)
        for number, (wordnet, jpeg) in enumerate(pictures(32))
    ]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(archives.tar_of_tars(training))
    validation = {
        f"ILSVRC2012_val_{number:08d}": found for number, found in enumerate(pictures(3), start=1)
    }
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(
        archives.tar_bytes((f"{name}.JPEG", jpeg) for name, (_, jpeg) in validation.items())
    )
    lines = [f"{name},{wordnet} 1 2 30 40 \n" for name, (wordnet, _) in validation.items()]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def start(line, folder, *flags, **variables):
    """A line of README, with other flags after it."""
    return harness.Process(
        [*shlex.split(line), *flags],
        folder=folder,
        environment=harness.environment(2, **variables),
    )


def finished(started):
    with started as process:
        assert process.wait() == 0, process.said()
        return process.said()


@pytest.mark.slow
def test_from_archives_to_a_run_that_is_killed_and_goes_on_as_if_nothing_had_been(folder, rng):
    *preparing, training = readme.IMAGENET
    for line, ending in zip(
        preparing,
        ("train: 96 pictures of 3", "validation: 9 pictures of 3", "train is as it was written"),
        strict=True,
    ):
        assert ending in finished(start(line, folder))

    def train(workdir):
        flags = [f"--workdir={workdir}", *(f"--gin_bindings={each}" for each in TINY)]
        # Compiling once is enough.
        return start(
            training,
            folder,
            *flags,
            JAX_COMPILATION_CACHE_DIR=str(folder / "cache"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    output = finished(train("whole"))
    assert f"step {STEPS}/{STEPS}" in output
    assert "96 training and 9 evaluation examples of 3 classes" in output
    step = rng.randint(6, 14)
    with train("killed") as process:
        commands.wait_for_step(folder / "killed", step, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert "resuming after step" in finished(train("killed"))
    losses = commands.losses(folder / "killed")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert len(set(losses.values())) == STEPS
    whole, resumed = (commands.arrays(pathlib.Path(folder / name)) for name in ("whole", "killed"))
    commands.assert_same_bits(resumed, whole)
