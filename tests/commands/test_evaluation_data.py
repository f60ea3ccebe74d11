"""The evaluation split: tried before training begins, read alone by `evaluate`, never lost work."""

import json
import shutil

import pytest
from support import commands, datasets, program

import nest_dist

pytestmark = pytest.mark.medium

# 12 pictures a split, 3 batches an epoch.
BINDINGS = (
    *(it for it in commands.TINY if not it.startswith(("Digits", "PaddedCrop"))),
    *commands.ONE_LEVEL,
    "NesT.num_channels = 3",
    "Normalize.mean = (0.5,)",
    "Normalize.std = (0.25,)",
    "TrainingData.transforms = (@ResizedCentreCrop(),)",
    "EvaluationData.transforms = (@ResizedCentreCrop(),)",
    "ResizedCentreCrop.side = 16",
    "ResizedCentreCrop.shorter_side = 16",
    "Run.global_batch = 4",
    "Run.num_epochs = 1",
    "Cadence.save_every_epochs = 1",
    "Evaluation.every_epochs = 1",
    "num_classes = 3",
)


def train(workdir, data, *more):
    files = ("runs/quickstart.gin", "data/image_folder.gin")
    bindings = (*BINDINGS, f"data_folder = '{data}'", *more)
    return commands.nest_dist(
        "train",
        f"--workdir={workdir}",
        *(f"--gin_file={name}" for name in files),
        *(f"--gin_bindings={binding}" for binding in bindings),
    )


@pytest.fixture
def data(tmp_path):
    for split in ("train", "validation"):
        datasets.image_folder(tmp_path / "data", split=split)
    return tmp_path / "data"


@pytest.mark.slow
def test_evaluate_reads_the_evaluation_split_alone(data, tmp_path):
    workdir = tmp_path / "run"
    done = train(workdir, data)
    assert done.returncode == 0, done.stderr
    (evaluated,) = commands.evaluations(workdir)
    shutil.rmtree(data / "train")
    done = commands.nest_dist("evaluate", f"--workdir={workdir}", "--format=json", succeeds=True)
    assert json.loads(done.stdout) == evaluated
    again = ("evaluate", f"--workdir={workdir}", "--gin_bindings=Run.global_batch = 8")
    title, *rows = program.succeeds(*again).splitlines()
    assert title == "step 3, split validation"
    # Of three classes every label is in the top 5.
    assert [row.split()[0] for row in rows] == ["loss", "top-1", "examples"]
    assert rows[1].split()[1] == f"{evaluated['eval/top_1']:.2%}"
    names, values = program.succeeds(*again, "--format=csv").split()
    assert names == "split,step,eval/loss,eval/top_1,eval/examples"
    assert values.startswith("validation,3,")


@pytest.mark.slow
def test_classes_are_counted_where_no_number_is_bound(data, tmp_path):
    workdir = tmp_path / "run"
    done = train(workdir, data, "num_classes = None")
    assert done.returncode == 0, done.stderr
    assert "12 training and 12 evaluation examples of 3 classes" in done.stdout
    assert "validation top-1" in done.stdout
    assert nest_dist.load(workdir).model.num_classes == 3
    # Fewer classes there are evaluated with those of training.
    shutil.rmtree(data / "validation" / "rocket")
    again = ("evaluate", f"--workdir={workdir}", "--gin_bindings=Run.global_batch = 8")
    shown = program.succeeds(*again, "--format=json")
    assert json.loads(shown)["eval/examples"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [("chelsea/002", []), pytest.param("rocket/003", [3], marks=pytest.mark.slow)],
)
def test_a_broken_picture_costs_no_step(name, steps, data, tmp_path):
    """In the first batch it is found before training, later after the step was saved."""
    picture = data / "validation" / f"{name}.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[:200])
    workdir = tmp_path / "run"
    done = train(workdir, data)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{picture}) is corrupt" in done.stderr
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == steps
    assert ("step 1/3" in done.stdout) == bool(steps)
    picture.write_bytes(content)
    done = train(workdir, data)
    assert done.returncode == 0, done.stderr
    assert len(commands.evaluations(workdir)) == 1
    assert [line["step"] for line in commands.metrics(workdir) if "train/loss" in line] == [1, 2, 3]
