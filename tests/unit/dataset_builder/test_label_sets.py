"""Files of labels with several classes a line."""

import numpy as np
import pytest
from support import photographs, program
from support.refusals import refusal

from nest_dist.data import targets
from nest_dist.data.sources import array_record
from nest_dist.dataset_builder import inputs, labels

A, P, U = targets.ABSENT, targets.PRESENT, targets.UNKNOWN
# Classes cat, great white shark, yak of the pictures a, b, c.
FILES = {
    "commas": ("|", "file,label\na.jpg,yak|cat\nb.jpg,\nc.jpg,great white shark|?cat\n"),
    "quoted": (";", '"a","cat;yak"\n"b",""\n"c","great white shark; ?cat"\n'),
    "spaces": ("|", "a.jpg cat | yak\nb |\nc.jpg great white shark|?cat|great white shark\n"),
}
ROWS = {"a": [P, A, P], "b": [A, A, A], "c": [U, P, A]}


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ROWS:
        (pictures / f"{name}.jpg").write_bytes(photographs.jpeg("coffee", 20, 20))
    return pictures


def opened(folder, path, separator):
    options = inputs.Options("train", str(path), "image", "label", separator)
    return inputs.opened("folder", [folder], options).source


def rows(source):
    form = targets.ClassSets()
    examples = [source[index] for index in range(len(source))]
    return {each["key"].rpartition("/")[2][0]: form.of(each, 3).tolist() for each in examples}


@pytest.mark.parametrize(("separator", "text"), FILES.values(), ids=FILES)
def test_a_line_may_name_several_classes_or_none(separator, text, folder, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    source = opened(folder, path, separator)
    assert source.class_names == ("cat", "great white shark", "yak")
    assert rows(source) == ROWS
    assert source.class_counts() == (1, 1, 1)


@pytest.mark.medium
def test_prepared_sets_are_what_the_file_says(folder, tmp_path):
    separator, text = FILES["commas"]
    path = tmp_path / "labels.csv"
    path.write_text(text)
    flags = (f"--output={tmp_path / 'out'}", "--split=train", "--workers=1")
    program.succeeds(
        "prepare", str(folder), *flags, f"--labels={path}", f"--label_separator={separator}"
    )
    program.succeeds("prepare", *flags, "--verify")
    source = array_record.ArrayRecord(str(tmp_path / "out"), "train").open()
    assert rows(source) == ROWS
    assert source.class_counts() == (1, 1, 1)


def test_without_a_separator_a_line_names_one_class(folder, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("a,yak|cat\nb,?dog\nc,cat\n")
    source = opened(folder, path, None)
    assert source.class_names == ("?dog", "cat", "yak|cat")
    assert np.array([source[index]["labels"] for index in range(3)]).shape == (3, 1)


def test_a_class_that_is_known_and_unknown_is_known():
    names, (found,) = labels.sets(["cat|?cat|? dog"], "|")
    assert names == ["cat", "dog"]
    assert found == ((0,), (1,))


@pytest.mark.parametrize(
    ("text", "separator", "refused"),
    [
        ("a,cat\nb,\nc,dog\n", None, "whose line 2 has no class for b.jpg; add it"),
        ("a,\nb,\nc,\n", "|", "has no class; give NAME CLASS"),
        ("a,|\nb,|\nc,|\n", "|", "labels.csv, which gives no picture a class; add classes."),
        ("a,?\nb,dog\nc,yak\n", "|", "--labels has '?', where ? is before no class; write ?CLASS."),
        ("a,cat\nb,dog\nc,yak\n", "", "--label_separator is empty; give a character such as |."),
    ],
)
def test_files_without_classes_are_refused(text, separator, refused, folder, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with refusal(refused):
        opened(folder, path, separator)


def test_a_separator_without_a_file_of_labels_is_refused(folder):
    with refusal("--label_separator is '|', but there is no file of labels; give --labels"):
        inputs.opened("folder", [folder], inputs.Options("train", None, "image", "label", "|"))
