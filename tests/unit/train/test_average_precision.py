import math

import numpy as np
import pytest

from nest_dist.data import targets
from nest_dist.train import average_precision

A, P, U = targets.ABSENT, targets.PRESENT, targets.UNKNOWN


def by_thresholds(scores, present):
    """The sum of precision times gain of recall, from the highest threshold to the lowest."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        right = int((taken & present).sum())
        area += right / int(taken.sum()) * (right / int(present.sum()) - recall)
        recall = right / int(present.sum())
    return area


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_it_is_the_area_under_precision_by_recall_whatever_the_ties(levels, rng):
    random = np.random.default_rng(rng.randrange(1 << 32))
    for size in (1, 2, 7, 60):
        scores = random.integers(0, levels, size).astype(np.float32)
        present = random.random(size) < 0.3
        present[random.integers(size)] = True
        found = average_precision.average_precision(scores, present)
        assert found == pytest.approx(by_thresholds(scores, present), rel=1e-12)


def test_a_known_case():
    # As scikit-learn documents `average_precision_score`.
    scores, present = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    found = average_precision.average_precision(scores, present)
    assert found == pytest.approx(0.8333333333333333, rel=1e-12)


def test_nan_is_never_right():
    scores = np.array([np.nan, 2.0, 1.0], np.float32)
    of_nan = np.array([True, False, False])
    assert average_precision.average_precision(scores, of_nan) == 0
    # One of two is found, behind the NaN that counts as above it.
    assert average_precision.average_precision(scores, np.array([True, True, False])) == 1 / 4
    assert average_precision.average_precision(scores, np.array([False, True, False])) == 1 / 2
    everything = np.full(3, np.nan, np.float32)
    assert average_precision.average_precision(everything, np.ones(3, bool)) == 0


def test_a_class_without_examples_does_not_count_and_unknown_ones_are_left_out():
    scores = np.array([[9, 1, 5], [8, 2, 6], [7, 3, 7]], np.float32)
    labels = np.array([[A, A, P], [P, A, A], [A, A, U]], np.uint8)
    found = average_precision.mean_average_precision(scores, labels)
    assert found == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert math.isnan(average_precision.mean_average_precision(scores, np.full_like(labels, A)))


def test_batches_give_what_the_whole_split_gives(rng):
    random = np.random.default_rng(rng.randrange(1 << 32))
    scores = random.normal(size=(24, 4)).astype(np.float32)
    labels = random.integers(0, 3, (24, 4)).astype(np.uint8)
    whole = average_precision.mean_average_precision(scores, labels)
    for size in (24, 8, 5):
        kept = average_precision.Scores()
        for start in range(0, 24, size):
            rows = slice(start, start + size)
            kept.add({"scores": scores[rows], "labels": labels[rows], "loss": 0})
        assert kept.metrics() == {"eval/mean_average_precision": whole}
    # The order of the examples, and so the size of a batch, does not matter to a bit.
    order = random.permutation(24)
    assert average_precision.mean_average_precision(scores[order], labels[order]) == whole
    assert average_precision.Scores().metrics() == {}
