"""The vote of the nearest neighbours against its definition, example by example."""

import math

import numpy as np
import pytest
from support import seen
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.train.evaluators import neighbours
from nest_dist.train.objectives import classification


def by_hand(known, labels, asked, classes, k, temperature=None):
    """Cosine similarity; sorted by it and by position; votes added one after the other."""
    predicted = []
    for one in asked:
        near = []
        for position, other in enumerate(known):
            lengths = math.sqrt((one**2).sum()) * math.sqrt((other**2).sum())
            near.append((-float(one @ other) / lengths, position))
        votes = [0.0] * classes
        for nearness, position in sorted(near)[:k]:
            votes[labels[position]] += (
                1 if temperature is None else math.exp(-nearness / temperature)
            )
        predicted.append(votes.index(max(votes)))
    return predicted


def random_split(count, classes=4, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return rng.normal(size=(count, channels)) + labels[:, None], labels


@pytest.mark.parametrize("temperature", [None, 0.07])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_votes_are_those_of_the_definition(k, temperature):
    known, labels = random_split(60)
    asked, _ = random_split(37, seed=1)
    measure = neighbours.KNearest(k, temperature=temperature)
    predicted = measure.predict(known, labels, asked, 4)
    assert predicted.tolist() == by_hand(known, labels, asked, 4, k, temperature)


def test_euclidean_neighbours_are_the_nearest_points():
    known, labels = random_split(50)
    asked, _ = random_split(20, seed=1)
    measure = neighbours.KNearest(1, "euclidean", None)
    nearest = [min(range(50), key=lambda it: ((known[it] - one) ** 2).sum()) for one in asked]
    np.testing.assert_array_equal(measure.predict(known, labels, asked, 4), labels[nearest])


def test_of_equals_the_earlier_neighbour_and_the_lower_label_win():
    known = np.array([[1.0, 0.0]] * 4)
    labels = np.array([3, 1, 2, 0])
    alone = neighbours.KNearest(1, temperature=None).predict(known, labels, known[:1], 4)
    assert alone.tolist() == [3]
    both = neighbours.KNearest(2, temperature=None).predict(known, labels, known[:1], 4)
    assert both.tolist() == [1]


def test_the_rows_of_one_table_do_not_change_a_vote(monkeypatch):
    known, labels = random_split(60)
    asked, _ = random_split(37, seed=1)
    whole = neighbours.KNearest(5).predict(known, labels, asked, 4)
    monkeypatch.setattr(neighbours, "CHUNK", 200)
    np.testing.assert_array_equal(neighbours.KNearest(5).predict(known, labels, asked, 4), whole)


def test_what_is_not_finite_is_never_right_and_is_told():
    known, labels = random_split(30)
    bad_known, bad_asked = known.copy(), known.copy()
    bad_known[4], bad_asked[0, 2], bad_asked[1, 0] = np.inf, np.nan, np.inf
    measure = neighbours.KNearest(1, level=0)
    examples, reference = seen.features(bad_asked, labels, 0), seen.features(bad_known, labels, 0)
    finding = seen.concluded(measure, examples, reference, seen.classes(4))
    perfect = seen.concluded(measure, *[seen.features(known, labels, 0)] * 2, seen.classes(4))
    assert perfect.metrics == {"level_0/knn_1": 1.0}
    assert perfect.notes == ()
    assert 0.8 < finding.metrics["level_0/knn_1"] <= 28 / 30
    of_asked, of_known = finding.notes
    assert of_asked == (
        "level_0/knn_1: 2 of 30 examples have features that are not finite; they count as wrong"
    )
    assert of_known == (
        "level_0/knn_1: 1 of 30 reference examples have features that are not finite; they are "
        "left out"
    )
    nothing = seen.features(np.full_like(known, np.nan), labels, 0)
    without = seen.concluded(measure, examples, nothing, seen.classes(4))
    assert without.metrics == {"level_0/knn_1": 0.0}
    assert "4 classes, 'a' the first, have no reference examples" in without.notes[-1]
    none = measure.predict(known[:0], labels[:0], known[:2], 4)
    assert none.tolist() == [classification.NO_CLASS] * 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"k": 0}, "KNearest.k is 0; it must be at least 1."),
        ({"level": -1}, "KNearest.level is -1; it must be at least 0."),
        ({"distance": "manhattan"}, "KNearest.distance is 'manhattan'; give 'cosine' or 'euclid"),
        (
            {"distance": "euclidean"},
            (
                "KNearest.temperature is 0.07, which has a meaning for cosine similarity alone; "
                "set it to None, or KNearest.distance to 'cosine'."
            ),
        ),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, text):
    with refusal(text):
        neighbours.KNearest(**fields)


def test_fewer_reference_examples_than_neighbours_are_refused():
    text = "KNearest.k is 20, and there are 19 reference examples; lower it, or give more in"
    neighbours.KNearest().require_fit(seen.classes(4), 5, 20)
    with pytest.raises(failures.BadInput, match=text):
        neighbours.KNearest().require_fit(seen.classes(4), 5, 19)
