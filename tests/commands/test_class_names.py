"""Classes go by name: between splits, checkpoints and weights, wherever their order differs."""

import json
import shutil

import numpy as np
import pytest
from support import commands, datasets

from nest_dist.data import manifest
from nest_dist.data.sources import array_record

pytestmark = pytest.mark.medium

BINDINGS = (
    "num_classes = 3",
    "NesT.num_channels = 3",
    "TrainingData.transforms = (@ResizedCentreCrop(),)",
    "EvaluationData.transforms = (@ResizedCentreCrop(),)",
    "ResizedCentreCrop.side = 16",
    "ResizedCentreCrop.shorter_side = 16",
    "Normalize.mean = (0.5,)",
    "Normalize.std = (0.25,)",
    "Run.num_epochs = 4",
    "Run.global_batch = 4",
    "Evaluation.every_epochs = 4",
    "Cadence.save_every_epochs = 4",
    *commands.ONE_LEVEL,
)
TINY = [each for each in commands.TINY if not each.startswith(("Digits", "PaddedCrop"))]


def train(workdir, data, *bindings, kind="image_folder", flags=()):
    given = (*TINY, *BINDINGS, f"data_folder = '{data}'", *bindings)
    return commands.nest_dist(
        "train",
        f"--workdir={workdir}",
        "--gin_file=runs/quickstart.gin",
        f"--gin_file=data/{kind}.gin",
        *(f"--gin_bindings={binding}" for binding in given),
        *flags,
    )


def line(done, start):
    return next(each for each in done.stdout.splitlines() if start in each)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "validation"):
        datasets.image_folder(root, split=split)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    done = train(workdir, data)
    assert done.returncode == 0, done.stderr
    return workdir


def test_run_and_checkpoint_name_the_classes(run):
    metadata = json.loads(next(run.glob("checkpoints/*/metadata.json")).read_text())
    for document in (json.loads((run / "run.json").read_text()), metadata):
        assert document["class_names"] == list(datasets.CLASSES)


@pytest.mark.slow
def test_evaluating_needs_only_its_own_split_and_goes_by_names(run, data, tmp_path):
    (measured,) = commands.evaluations(run)
    root = tmp_path / "data"
    shutil.copytree(data / "validation", root / "validation")
    names = ("rocket", "coffee", "chelsea")
    arrays = [(name, (names.index(name.split("/")[0]),), jpeg) for name, _, jpeg in pictures()]
    prepared(tmp_path / "prepared" / "validation", names, arrays)
    for kind, folder in (("image_folder", root), ("array_record", tmp_path / "prepared")):
        source = {"image_folder": "ImageFolder", "array_record": "ArrayRecord"}[kind]
        done = commands.nest_dist(
            "evaluate",
            f"--workdir={run}",
            "--format=json",
            f"--gin_bindings=import nest_dist.data.sources.{kind}",
            f"--gin_bindings=EvaluationData.source = @other/{source}()",
            f"--gin_bindings=other/{source}.folder = '{folder}'",
            f"--gin_bindings=other/{source}.split = 'validation'",
            succeeds=True,
        )
        again = json.loads(done.stdout)
        assert again["eval/top_1"] == measured["eval/top_1"]
        assert again["eval/loss"] == pytest.approx(measured["eval/loss"], rel=1e-6)


def pictures():
    return datasets.pictures()


def prepared(folder, class_names, entries):
    """A split as `prepare` writes it."""
    folder.mkdir(parents=True)
    path = folder / "0.array_record"
    array_record.write(path, [array_record.pack(*entry) for entry in entries])
    shard = manifest.Shard(path.name, len(entries), path.stat().st_size, "0" * 64)
    counts = dict.fromkeys(class_names, len(entries) // len(class_names))
    manifest.write(folder, manifest.Manifest(counts, {}, "", (shard,)))
    return folder


@pytest.mark.slow
def test_a_split_may_lack_a_class_and_not_have_another(data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    shutil.rmtree(root / "validation" / "coffee")
    assert train(tmp_path / "without", root).returncode == 0
    (root / "validation" / "coffee").mkdir()
    done = train(tmp_path / "empty", root)
    assert done.returncode == 0, done.stderr
    assert "1 entries are passed over, such as coffee: a class folder without" in done.stderr
    done = train(tmp_path / "two", root, "num_classes = 2")
    assert done.returncode == 2
    has = "the data has 3 classes (chelsea, coffee, rocket), NesT.num_classes is 2; set it to 3"
    assert has in done.stderr
    (root / "validation" / "coffee").rename(root / "validation" / "tea")
    shutil.copy(root / "train/coffee/000.jpg", root / "validation/tea")
    done = train(tmp_path / "other", root)
    assert done.returncode == 2
    assert (
        "class 'tea' is not among the 3 classes of the training split (chelsea, coffee, rocket); "
        "give an evaluation split with these classes." in done.stderr
    )


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_data_at_another_path(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "moved")
    done = train(tmp_path / "run", tmp_path / "moved", "Run.num_epochs = 8")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 12" in done.stdout
    assert "ImageFolder.folder was" in done.stdout or "source.folder was" in done.stdout


@pytest.mark.slow
def test_a_resumed_run_keeps_the_labels_of_its_checkpoint(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    names = ("rocket", "coffee", "chelsea")
    entries = [(name, (2 - label,), picture) for name, label, picture in datasets.pictures()]
    for split in ("train", "validation"):
        prepared(tmp_path / "other" / split, names, entries)
    more = ("Run.num_epochs = 5", "Evaluation.every_epochs = 5", "AdamW.peak_learning_rate = 0.0")
    flags = ("--allow_config_change",)
    done = train(tmp_path / "run", tmp_path / "other", *more, kind="array_record", flags=flags)
    assert done.returncode == 0, done.stderr
    assert "classes are in the order of the checkpoint: chelsea, coffee, rocket" in done.stdout
    assert "the training data are others: the run goes on differently" in done.stdout
    # Nothing was learned since, so the same pictures get the same losses.
    before, after = commands.evaluations(tmp_path / "run")
    assert after["eval/loss"] == pytest.approx(before["eval/loss"], rel=1e-5)
    other = [(name, labels, picture) for name, labels, picture in entries]
    for split in ("train", "validation"):
        prepared(tmp_path / "third" / split, ("rocket", "tea", "chelsea"), other)
    done = train(tmp_path / "run", tmp_path / "third", *more, kind="array_record", flags=flags)
    assert done.returncode == 2
    assert "class 'tea' is not among the 3 classes of the checkpoint of this workdir" in done.stderr


@pytest.mark.slow
def test_weights_of_other_classes_get_a_new_head(run, data, tmp_path):
    still = ("AdamW.peak_learning_rate = 0.0", f"Run.init_from = '{run}'")
    names = ("rocket", "coffee", "chelsea")
    entries = [(name, (2 - label,), picture) for name, label, picture in datasets.pictures()]
    for folder, class_names in (("order", names), ("others", ("a", "b", "c"))):
        for split in ("train", "validation"):
            prepared(tmp_path / folder / split, class_names, entries)
    done = train(tmp_path / "1", tmp_path / "order", *still, kind="array_record")
    assert done.returncode == 0, done.stderr
    assert "the head is brought into the order of the data's classes" in done.stdout
    head = {
        workdir: commands.arrays(workdir)["params/head/kernel"] for workdir in (run, tmp_path / "1")
    }
    np.testing.assert_array_equal(head[tmp_path / "1"], head[run][:, ::-1])
    done = train(tmp_path / "2", tmp_path / "others", *still, kind="array_record")
    assert done.returncode == 0, done.stderr
    assert "reinitialized for other classes: head/bias, head/kernel" in done.stdout
    assert "the weights have class 'chelsea' where the data have 'a': a new head" in done.stdout
