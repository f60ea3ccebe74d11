"""Ridge regression against its normal equations, and the draws against their promises."""

import collections

import numpy as np
import pytest
from support import seen

from nest_dist.train.evaluators import few_shot
from nest_dist.train.objectives import classification


def by_hand(known, labels, penalty, asked):
    """One column of ones, whose weight has no penalty; one system for each class."""
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    inputs = np.column_stack([(known - mean) / deviation, np.ones(len(known))])
    queries = np.column_stack([(asked - mean) / deviation, np.ones(len(asked))])
    penalties = np.diag([penalty * len(known)] * known.shape[1] + [0.0])
    names = sorted(set(labels.tolist()))
    scores = []
    for name in names:
        wanted = np.where(labels == name, 1.0, -1.0)
        weights = np.linalg.inv(inputs.T @ inputs + penalties) @ inputs.T @ wanted
        scores.append(queries @ weights)
    return np.array(names)[np.argmax(scores, axis=0)], np.array(scores)


def random_split(count, channels, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    return rng.normal(size=(count, channels)) + 0.7 * labels[:, None], labels


@pytest.mark.parametrize(("count", "channels"), [(80, 6), (12, 30)])
def test_predictions_are_those_of_the_normal_equations(count, channels):
    known, labels = random_split(count, channels)
    asked, _ = random_split(50, channels, seed=1)
    expected, scores = by_hand(known, labels, 0.1, asked)
    found = few_shot.ridge(known, labels, 0.1, asked)
    margins = np.sort(scores, axis=0)
    assert (margins[-1] - margins[-2]).min() > 1e-9  # no tie, which rounding would decide
    np.testing.assert_array_equal(found, expected)


def test_features_that_are_constant_change_nothing():
    known, labels = random_split(40, 5)
    asked, _ = random_split(30, 5, seed=1)
    constant = [np.column_stack([it, np.full(len(it), 0.3)]) for it in (known, asked)]
    plain = few_shot.ridge(known, labels, 0.1, asked)
    np.testing.assert_array_equal(few_shot.ridge(constant[0], labels, 0.1, constant[1]), plain)


def test_a_draw_has_so_many_of_each_class_and_begins_with_a_smaller_one():
    labels = np.repeat([0, 1, 2], [20, 3, 8])
    measure = few_shot.FewShot((1, 5), seed=3)
    draws = [measure.drawn(labels, 5, draw) for draw in range(3)]
    for draw in draws:
        assert collections.Counter(labels[draw].tolist()) == {0: 5, 1: 3, 2: 5}
        assert len(set(draw.tolist())) == len(draw)
    assert len({tuple(draw) for draw in draws}) == 3
    assert set(measure.drawn(labels, 1, 0)) < set(draws[0])
    np.testing.assert_array_equal(draws[0], few_shot.FewShot((5,), seed=3).drawn(labels, 5, 0))
    assert set(draws[0]) != set(few_shot.FewShot((5,), seed=4).drawn(labels, 5, 0))


def test_the_metric_is_the_mean_over_the_draws():
    known, labels = random_split(200, 6)
    asked, wanted = random_split(60, 6, seed=1)
    measure = few_shot.FewShot((2,), draws=4)
    reference, examples = seen.features(known, labels), seen.features(asked, wanted)
    finding = seen.concluded(measure, examples, reference, seen.classes(4))
    known, asked = np.float32(known).astype(float), np.float32(asked).astype(float)
    shares = []
    for draw in range(4):
        taken = measure.drawn(labels, 2, draw)
        shares.append((by_hand(known[taken], labels[taken], 0.1, asked)[0] == wanted).mean())
    assert len(set(shares)) > 1
    assert finding.metrics["few_shot_2"] == pytest.approx(np.mean(shares), rel=1e-12)
    assert finding.metrics["few_shot_2_deviation"] == pytest.approx(np.std(shares), rel=1e-12)
    assert finding.notes == ()


def test_a_class_without_examples_is_never_right_and_is_told():
    known, labels = random_split(80, 6)
    asked, wanted = random_split(40, 6, seed=1)
    reference = seen.features(known[labels != 2], labels[labels != 2])
    finding = seen.concluded(
        few_shot.FewShot((5,)), seen.features(asked, wanted), reference, seen.classes(4)
    )
    assert finding.metrics["few_shot_5"] <= 0.75
    (note,) = finding.notes
    assert note == (
        "few_shot: 1 classes, 'c' the first, have no reference examples; theirs count as wrong"
    )
    fewer = seen.concluded(
        few_shot.FewShot((30,)), seen.features(asked, wanted), reference, seen.classes(4)
    )
    assert fewer.notes[1] == (
        "few_shot: 3 classes, 'a' the first, have fewer than 30 reference examples; they take part "
        "with those they have"
    )
    only = seen.concluded(
        few_shot.FewShot((5,)),
        seen.features(asked[wanted == 2], wanted[wanted == 2]),
        reference,
        seen.classes(4),
    )
    assert only.metrics["few_shot_5"] == 0


def test_what_is_not_finite_is_left_out_or_wrong():
    known, labels = random_split(80, 6)
    spoilt = known.copy()
    spoilt[:40] = np.nan
    whole = few_shot.FewShot((1,), draws=1)
    half = seen.concluded(
        whole, seen.features(known, labels), seen.features(spoilt, labels), seen.classes(4)
    )
    same = seen.concluded(
        whole, seen.features(known, labels), seen.features(known[40:], labels[40:]), seen.classes(4)
    )
    assert half.metrics == same.metrics
    bad = seen.concluded(
        whole,
        seen.features(np.full_like(known, np.nan), labels),
        seen.features(known, labels),
        seen.classes(4),
    )
    assert bad.metrics["few_shot_1"] == 0
    assert "80 of 80 examples have features that are not finite" in bad.notes[0]
    none = few_shot.ridge(known[:0], labels[:0], 0.1, known[:2])
    assert none.tolist() == [classification.NO_CLASS] * 2
