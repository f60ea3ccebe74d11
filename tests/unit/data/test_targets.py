"""Pictures of several classes, from every source that holds them to a row of a batch."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import batches, datasets, photographs
from support.refusals import refusal

from nest_dist.data import batch, classes, manifest, pipeline, targets
from nest_dist.data.sources import array_record, parquet

PICTURE = photographs.jpeg("coffee", 20, 20)
NAMES = ("cat", "dog", "yak")
# Each picture's classes, and those of which nobody knows.
SETS = [((0,), ()), ((0, 2), (1,)), ((), ()), ((1,), (0, 2)), ((), (0, 1, 2))]
A, P, U = targets.ABSENT, targets.PRESENT, targets.UNKNOWN
ROWS = np.array([[P, A, A], [P, U, P], [A, A, A], [U, P, U], [U, U, U]], np.uint8)


def records(root):
    (root / "train").mkdir()
    packed = [
        array_record.pack(f"{at}.jpg", labels, PICTURE, unknown)
        for at, (labels, unknown) in enumerate(SETS)
    ]
    path = root / "train" / "0.array_record"
    array_record.write(path, packed)
    shard = manifest.Shard(path.name, len(packed), path.stat().st_size, "0" * 64)
    counts = {"cat": 2, "dog": 1, "yak": 1}
    manifest.write(root / "train", manifest.Manifest(counts, {}, "", (shard,)))
    return array_record.ArrayRecord(str(root), "train").open()


def table(root, label, unknown=None, kind=None, features=None):
    """A Parquet file of one column of labels, or of two."""
    columns = {"image": pyarrow.array([PICTURE] * len(label), pyarrow.binary())}
    columns["label"] = pyarrow.array(label, kind)
    if unknown is not None:
        columns["unknown"] = pyarrow.array(unknown, kind)
    written = pyarrow.table(columns)
    if features:
        about = json.dumps({"info": {"features": features}})
        written = written.replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(written, root / "train-0.parquet", row_group_size=2)
    return parquet.Parquet(
        (str(root / "train-0.parquet"),),
        "train",
        unknown=None if unknown is None else "unknown",
    )


def texts(root):
    named = [[[NAMES[label] for label in part] for part in pair] for pair in SETS]
    label, unknown = zip(*named, strict=True)
    return table(root, label, unknown, pyarrow.list_(pyarrow.string())).open()


def numbers(root):
    label, unknown = zip(*[[list(part) for part in pair] for pair in SETS], strict=True)
    feature = {"_type": "ClassLabel", "names": list(NAMES)}
    features = {"label": {"_type": "List", "feature": feature}}
    return table(root, label, unknown, pyarrow.large_list(pyarrow.int64()), features).open()


def reordered(root):
    """Classes of a run in another order than those of the records."""
    return classes.in_order(
        classes.in_order(records(root), ("yak", "cat", "dog"), "", ""), NAMES, "", ""
    )


@pytest.mark.parametrize("source", [records, texts, numbers, reordered])
def test_sets_of_classes_are_read(source, tmp_path):
    opened = source(tmp_path)
    assert opened.class_names == NAMES
    form = targets.ClassSets()
    found = [form.of(opened[index], 3) for index in range(len(opened))]
    np.testing.assert_array_equal(found, ROWS)


def test_a_batch_of_sets_is_the_same_on_any_number_of_processes(tmp_path):
    source = records(tmp_path)
    data = pipeline.TrainingData(batches.Opened(source), batches.MIDDLE, workers=0)
    order = data.example_ids(source, seed=3, global_batch=4, step=1)
    whole = []
    for processes in (1, 2):
        parts = []
        for process in range(processes):
            rows = batches.rows_of(process, processes, 4)
            loaded = data.batches(
                source, seed=3, global_batch=4, rows=rows, first_step=1, labels=targets.ClassSets()
            )
            parts.append(np.array(next(loaded)["labels"]))
            loaded.close()
        whole.append(np.concatenate(parts))
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[0], ROWS[order])
    assert whole[0].dtype == np.uint8


def test_padding_of_an_evaluation_has_no_class_and_no_weight(tmp_path):
    source = records(tmp_path)
    data = pipeline.EvaluationData(batches.Opened(source), batches.MIDDLE)
    loaded = data.batches(source, global_batch=4, rows=np.arange(4), labels=targets.ClassSets())
    first, last = ({name: np.array(x) for name, x in each.items()} for each in loaded)
    np.testing.assert_array_equal(first["labels"], ROWS[:4])
    np.testing.assert_array_equal(last["labels"], [ROWS[4], *[[A] * 3] * 3])
    np.testing.assert_array_equal(last["weight"], [1, 0, 0, 0])


def test_one_class_is_a_set_of_one():
    source = datasets.opened("synthetic", None)
    for index in range(4):
        row = targets.ClassSets().of(source[index], 3)
        assert np.flatnonzero(row == P).tolist() == [targets.OneClass().of(source[index], 3)]
        assert not (row == U).any()


def test_the_form_is_that_of_the_array_an_objective_needs():
    assert isinstance(targets.form_of({"labels": np.uint8}), targets.ClassSets)
    assert isinstance(targets.form_of({"label": np.int32}), targets.OneClass)
    assert isinstance(targets.form_of({}), targets.NoLabels)


@pytest.mark.parametrize("labels", [(), (0, 2)])
def test_a_set_is_refused_where_one_class_is_needed(labels):
    example = {"image": PICTURE, "labels": labels, "key": "a.jpg"}
    with refusal(f"a.jpg has {len(labels)} classes, Classification takes pictures of one; leave "):
        targets.OneClass().of(example, 3)


@pytest.mark.parametrize("field", ["labels", "unknown"])
def test_a_set_with_an_unknown_class_is_refused(field):
    example = {"image": PICTURE, "labels": (0,), "key": "a.jpg", field: (1, 3)}
    with refusal("a.jpg has label 3, the data has 3 classes, labels 0 to 2; correct the label or"):
        targets.ClassSets().of(example, 3)


def test_records_of_one_class_keep_their_bytes_and_marks_keep_their_meaning():
    assert array_record.pack("a", (7,), b"x") == b"NDR2\1\0\1\0\0\0\7\0\0\0ax"
    marked = array_record.pack("a", (1, 4), b"x", (0, 2))
    _, labels, _ = array_record.unpack(marked)
    assert array_record.parted(labels) == batch.ClassSet((1, 4), (0, 2))


def test_the_index_counts_the_examples_of_each_class(tmp_path):
    source = records(tmp_path)
    assert source.class_counts() == (2, 1, 1)
    other = classes.in_order(source, ("emu", "yak", "dog", "cat"), "", "")
    assert other.class_counts() == (0, 1, 1, 2)
    folder = datasets.opened("image_folder", tmp_path / "folder")
    assert folder.class_counts() == (4, 4, 4)
    assert sum(datasets.opened("digits", None).class_counts()) == 359
    assert datasets.opened("synthetic", None).class_counts() is None


@pytest.mark.parametrize(
    ("label", "fields", "text"),
    [
        ([[0, None]], {}, "train-0.parquet has 1 rows without a value in column 'label'; leave"),
        ([[0], None], {}, "train-0.parquet has 1 rows without a value in column 'label'; leave"),
        ([[], []], {}, "column 'label' of"),
        ([[0.5]], {"kind": pyarrow.list_(pyarrow.float32())}, "or lists of integers or texts."),
        ([[3]], {"features": {"label": [{"names": list(NAMES)}]}}, "has label 3, labels are 0 to"),
        ([0], {"unknown": [0], "kind": pyarrow.int64()}, "Parquet.unknown is 'unknown', of type"),
    ],
)
def test_lists_that_are_no_sets_of_classes_are_refused(label, fields, text, tmp_path):
    with refusal(text):
        table(tmp_path, label, **{"kind": pyarrow.list_(pyarrow.int64()), **fields}).open()
