"""Measures of what the head predicts, against their definitions."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from support import seen
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.train import evaluators, ranks
from nest_dist.train.evaluators import among_classes, confusion, right_labels, top_k
from nest_dist.train.objectives import classification

LOGITS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
LABELS = np.arange(40) % 6
LOGITS[3, 1], LOGITS[4, LABELS[4]] = np.nan, np.nan


def concluded(measure, classes, labels=LABELS, ids=None):
    output = evaluators.Seen(jnp.asarray(LOGITS), {})
    arrays = measure.observe(output, jnp.asarray(labels), classes)
    return seen.concluded(measure, seen.examples(labels, ids, **arrays), None, classes)


def rank(logits, label, among):
    """The position of the label, the last where a number cannot be compared."""
    if np.isnan(logits[label]) or label not in among:
        return 10**6
    return sum(1 for it in among if it == label or not logits[it] < logits[label])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_counts_the_logits_that_are_not_below(k):
    finding = concluded(top_k.TopK((k,)), seen.classes(6))
    right = [rank(row, label, range(6)) <= k for row, label in zip(LOGITS, LABELS, strict=True)]
    assert finding.metrics == {f"top_{k}": sum(right) / 40}
    objective = classification.in_top(jnp.asarray(LOGITS), jnp.asarray(LABELS), k)
    assert finding.metrics[f"top_{k}"] == int(objective.sum()) / 40


def test_a_rank_among_classes_compares_those_alone():
    among = np.array([0, 2, 5], np.int32)
    found = ranks.of_label(jnp.asarray(LOGITS), jnp.asarray(LABELS), among)
    expected = [rank(row, label, among) for row, label in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_array_equal(np.minimum(found, 10**6), expected)


@pytest.mark.parametrize("given", ["own", "names", "file"])
def test_accuracy_among_classes_leaves_out_the_others(given, tmp_path):
    own = ("f", "a", "c")
    names = tmp_path / "names.txt"
    names.write_text("a\nc\n\nf\n")
    classes = {"own": None, "names": ("a", "c", "f"), "file": str(names)}[given]
    finding = concluded(among_classes.AmongClasses(classes), seen.classes(6, own))
    counted = [
        rank(row, label, (0, 2, 5)) <= 1
        for row, label in zip(LOGITS, LABELS, strict=True)
        if label in (0, 2, 5)
    ]
    accuracy = sum(counted) / len(counted)
    assert finding.metrics == {"among_top_1": accuracy, "among_examples": len(counted)}


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (
            top_k.TopK((1, 6)),
            (
                "TopK.k has 6, and there are 6 classes, of which every label is among so many; give"
                " smaller numbers."
            ),
        ),
        (
            among_classes.AmongClasses(("a", "z")),
            (
                "AmongClasses.classes has 'z', which is none of the 6 classes of the model, as 'a';"
                " give names as the model has them."
            ),
        ),
        (
            among_classes.AmongClasses(("a", "b"), k=(2,)),
            "AmongClasses.k has 2, and AmongClasses.classes are 2, of which every label is among",
        ),
        (
            among_classes.AmongClasses("nowhere.txt"),
            "AmongClasses.classes is 'nowhere.txt', which cannot be read (No such file or directo",
        ),
        (
            right_labels.RightLabels("nowhere.json"),
            "RightLabels.file nowhere.json cannot be read (No such file or directory); give a JSON",
        ),
    ],
)
def test_what_does_not_fit_the_classes_is_named(measure, text):
    with refusal(text):
        measure.require_fit(seen.classes(6), 40, 0)


@pytest.fixture
def real(tmp_path):
    def written(content):
        path = tmp_path / "real.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return right_labels.RightLabels(str(path))

    return written


def test_sets_of_right_labels_go_by_the_ids_of_examples(real):
    own = ("b", "a", "c", "d", "e", "f")  # its numbers are the data set's
    rng = np.random.default_rng(1)
    sets = [rng.permutation(6)[: rng.integers(0, 4)].tolist() for _ in range(50)]
    sets[7] = ["a", "f"]
    ids = rng.permutation(50)[:40]
    finding = concluded(real(sets), seen.classes(6, own), ids=ids)
    swap = {0: 1, 1: 0, "a": 0, "f": 5}
    right, agreeing, count = 0, 0, 0
    for row, label, example in zip(LOGITS, LABELS, ids, strict=True):
        wanted = {swap.get(it, it) for it in sets[example]}
        if wanted:
            count += 1
            right += not np.isnan(row).any() and int(row.argmax()) in wanted
            agreeing += label in wanted
    assert finding.metrics == {
        "right_labels": right / count,
        "right_labels_agreement": agreeing / count,
        "right_labels_examples": count,
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[[1], [", "cannot be read (Expecting value: line 1 column 8 (char 7)); give a JSON file"),
        ({"0": [1]}, "holds no list; give a JSON file with a list of lists, one for each example."),
        ([[0]], "has 1 lists, the data set 2 examples; give the file of this data set."),
        ([[0], [6]], "has [6] for example 1; give a list of numbers from 0 to 5, or of class name"),
        ([[0], [True]], "has [True] for example 1; give a list of numbers"),
        ([[0], 3], "has 3 for example 1; give a list of numbers"),
        ([["z"], []], "has ['z'] for example 0; give a list of numbers"),
        ([[[1]], []], "has [[1]] for example 0; give a list of numbers"),
    ],
)
def test_a_file_that_is_no_list_of_labels_is_named(content, text, real):
    with refusal(text):
        real(content).require_fit(seen.classes(6), 2, 0)


def test_confusion_is_counted_pair_by_pair():
    finding = concluded(confusion.Confusion(), seen.classes(7))
    predicted = [-1 if np.isnan(row).any() else int(row.argmax()) for row in LOGITS]
    counts = np.zeros((8, 8), int)
    for label, guess in zip(LABELS, predicted, strict=True):
        counts[label, 7 if guess < 0 else guess] += 1
    np.testing.assert_array_equal(confusion.matrix(finding.confused, range(7)), counts)
    shares = [counts[label, label] / counts[label].sum() for label in range(6)]  # g has none
    assert finding.metrics["mean_class_accuracy"] == pytest.approx(np.mean(shares))
    assert finding.metrics["least_class_accuracy"] == min(shares)
    names = seen.classes(7).names
    by_class = confusion.rows_by_class(finding.confused, names)
    assert by_class[0] == ("class", "examples", "right", "accuracy")
    assert by_class[1] == ("a", counts[0].sum(), counts[0, 0], counts[0, 0] / counts[0].sum())
    assert by_class[7] == ("g", 0, 0, "")
    _, *rows = confusion.rows_of_pairs(finding.confused, names)
    assert sum(count for *_, count in rows) == 40
    assert ("d", confusion.NOTHING, 1) in rows
    top = confusion.wrong_pairs(finding.confused)[0]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    assert top.times == wrong.max()
    text = confusion.table(finding.confused, names, 3)
    assert "accuracy by class, the lowest first (3 of 6)" in text
    assert "1 classes have no examples" in text
    guess = confusion.class_name(top.predicted, names)
    assert f"{top.times}  {names[top.label]} taken for {guess}" in text


def test_other_classes_are_joined_in_a_small_matrix():
    confused = evaluators.Confused(
        np.arange(6), np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 3, 3, -1])
    )
    np.testing.assert_array_equal(
        confusion.matrix(confused, [0, 3]), [[1, 0, 1], [0, 1, 1], [0, 1, 1]]
    )


def test_measures_that_give_the_same_metric_are_refused():
    with pytest.raises(failures.BadInput, match="Evaluation 'x' gives eval/top_1 twice; leave out"):
        evaluators.require_distinct("Evaluation 'x'", ["eval/top_1", "eval/top_5", "eval/top_1"])
