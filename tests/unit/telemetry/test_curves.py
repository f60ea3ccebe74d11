"""The picture of a run's curves."""

import math

import numpy as np
import pytest

from nest_dist.telemetry import curves

HALF = (curves.HEIGHT, curves.WIDTH)


def count(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


def test_each_metric_is_a_curve_of_its_own():
    lines = [{"step": step, "train/loss": 5 / step, "train/accuracy": 0.1} for step in range(1, 40)]
    lines += [{"step": step, "eval/loss": 4 / step, "eval/top_1": 0.2} for step in (10, 20, 39)]
    picture = curves.draw(lines, "validation")
    assert picture.shape == (2 * curves.HEIGHT, 2 * curves.WIDTH, 3)
    loss, rate = picture[: HALF[0], : HALF[1]], picture[HALF[0] :, : HALF[1]]
    assert all(count(loss, colour) > 100 for colour in curves.COLOURS)
    assert count(rate, curves.COLOURS[0]) == 0  # nothing yet


def test_a_falling_curve_falls():
    lines = [{"step": step, "train/loss": -float(step)} for step in range(1, 100)]
    panel = curves.draw(lines, "test")[: HALF[0], : HALF[1]]
    inside = panel[curves.TOP : -curves.BOTTOM, curves.LEFT : -curves.RIGHT]
    rows, columns = np.nonzero((inside == curves.COLOURS[0]).all(axis=-1))
    assert np.corrcoef(rows, columns)[0, 1] > 0.99


def test_of_sets_of_classes_the_precision_at_one_is_drawn():
    lines = [{"step": step, "train/precision_at_1": 0.1 * step} for step in range(1, 9)]
    lines += [{"step": step, "eval/precision_at_1": 0.1 * step} for step in (4, 8)]
    second = curves.draw(lines, "validation")[: HALF[0], HALF[1] :]
    assert all(count(second, colour) > 100 for colour in curves.COLOURS)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 0, "train/loss": 1.0}],
        [{"step": 7, "train/loss": None, "eval/loss": math.nan, "eval/top_1": True}],
        [{"step": step, "train/loss": 0.0} for step in range(3)],
        [{"step": step, "train/loss": 1e30 * step} for step in range(3)],
    ],
)
def test_few_or_odd_numbers_are_drawn_too(lines):
    assert curves.draw(lines, "test").dtype == np.uint8


def test_long_runs_keep_their_last_point():
    lines = [{"step": step, "train/loss": 1.0} for step in range(12_345)]
    points = curves._points(lines, "train/loss")
    assert len(points) <= curves.MOST_POINTS
    assert points[-1][0] == 12_344


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 150, [0, 50, 100, 150]),
        (0, 1e-3, [0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3]),
        (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]),
        (1, 1, [1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert curves.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        ([2.0, 2.5, 3.0], "{:,.0f}", ["2.0", "2.5", "3.0"]),
        ([1000.0, 2000.0], "{:,.0f}", ["1,000", "2,000"]),
        ([0.99, 0.995, 1.0], "{:.0%}", ["99.0%", "99.5%", "100.0%"]),
        ([1e-4, 2e-4], "{:g}", ["0.0001", "0.0002"]),
    ],
)
def test_numbers_beside_an_axis_differ(values, form, expected):
    assert curves.labels(values, form) == expected
