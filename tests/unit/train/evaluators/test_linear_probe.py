"""Softmax regression against the condition of its minimum, written plainly."""

import numpy as np
import pytest
from support import seen

from nest_dist.train.evaluators import linear_probe


def random_split(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    return rng.normal(size=(count, 4)) + centres[labels], labels


def test_the_gradient_vanishes_at_the_weights():
    inputs, targets = random_split(90)
    probe = linear_probe.LinearProbe(penalty=0.01)
    weights, intercept, converged = probe.fit(inputs, targets)
    assert converged
    gradient, of_intercept = 0.01 * weights, np.zeros(3)
    for one, target in zip(inputs, targets, strict=True):
        powers = np.exp(one @ weights + intercept)
        error = powers / powers.sum() - np.eye(3)[target]
        gradient = gradient + np.outer(one, error) / len(inputs)
        of_intercept = of_intercept + error / len(inputs)
    # L-BFGS ends where no element is above 1e-6.
    assert np.abs(gradient).max() < 2e-6
    assert np.abs(of_intercept).max() < 2e-6


def test_the_metric_is_the_accuracy_of_these_weights():
    known, labels = random_split(120)
    asked, wanted = random_split(60, seed=1)
    probe = linear_probe.LinearProbe()
    finding = seen.concluded(
        probe, seen.features(asked, wanted), seen.features(known, labels), seen.classes(3)
    )
    known, asked = np.float32(known).astype(float), np.float32(asked).astype(float)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    weights, intercept, _ = probe.fit((known - mean) / deviation, labels)
    right = ((asked - mean) / deviation @ weights + intercept).argmax(axis=1) == wanted
    assert finding.metrics == {"linear_probe": pytest.approx(right.mean())}
    assert finding.metrics["linear_probe"] > 0.8
    assert finding.notes == ()


def test_labels_need_not_be_contiguous_and_what_is_not_finite_is_wrong():
    known, labels = random_split(60)
    spoilt = known.copy()
    spoilt[::3] = np.nan  # all of class 0
    finding = seen.concluded(
        linear_probe.LinearProbe(level=1),
        seen.features(spoilt, 2 * labels, 1),
        seen.features(spoilt, 2 * labels, 1),
        seen.classes(5),
    )
    assert finding.metrics["level_1/linear_probe"] == pytest.approx(2 / 3, abs=0.1)
    assert len(finding.notes) == 3
    assert finding.notes[2] == (
        "level_1/linear_probe: 1 classes, 'a' the first, have no reference examples; theirs count "
        "as wrong"
    )


def test_too_few_iterations_are_told():
    known, labels = random_split(60)
    finding = seen.concluded(
        linear_probe.LinearProbe(most_iterations=1),
        *[seen.features(known, labels)] * 2,
        seen.classes(3),
    )
    (note,) = finding.notes
    assert note.startswith("linear_probe was still improving after 1 iterations; raise LinearPr")
