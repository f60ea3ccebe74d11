import pickle

import pytest
from support import datasets
from support.refusals import refusal

from nest_dist.data import classes
from nest_dist.data.sources import image_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return datasets.opened("image_folder", tmp_path_factory.mktemp("data"), 2)


def in_order(source, *names):
    return classes.in_order(source, names, "the training split", "give others")


def named(source):
    return [
        (example["key"].split("/")[-2], *(source.class_names[label] for label in example["labels"]))
        for example in map(source.__getitem__, range(len(source)))
    ]


def test_a_split_takes_the_labels_of_the_names_of_another(source):
    assert in_order(source, *datasets.CLASSES) is source
    for names in (("rocket", "chelsea", "coffee"), ("aircraft", "rocket", "coffee", "chelsea")):
        other = pickle.loads(pickle.dumps(in_order(source, *names)))
        assert other.class_names == names
        assert (len(other), other.fingerprint) == (len(source), source.fingerprint)
        assert named(other) == named(source)
        assert all(folder == name for folder, name in named(other))


def test_numeric_names_are_names(tmp_path):
    for name in ("1", "2", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    other = in_order(image_folder.ImageFolder(str(tmp_path), "").open(), "1", "2", "3", "10")
    assert [example["labels"] for example in map(other.__getitem__, range(3))] == [(0,), (3,), (1,)]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ("chelsea", "coffee", "rockets", "x", "y"),
            "class 'rocket' is not among the 5 classes of the training split (chelsea, coffee, roc",
        ),
        (("chelsea", "x", "y", "z"), "(chelsea, x, y and 1 more); give others."),
        (("chelsea", "rocket", "rocket"), "class 'rocket' stands twice in the training split"),
    ],
)
def test_other_names_are_refused(source, names, text):
    with refusal(text):
        in_order(source, *names)
