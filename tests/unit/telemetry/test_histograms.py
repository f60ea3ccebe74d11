import itertools

import jax
import numpy as np

from nest_dist.telemetry import histograms


def test_a_histogram_counts_every_value_of_its_part_once():
    rng = np.random.default_rng(0)
    leaves = {
        "kernel": rng.standard_normal((64, 32)).astype(np.float32),
        "bias": np.float32([0, 0, 1e-30, -1e-30, 1e15, -1e15]),
    }
    trees = {"parameters": {"levels_0": leaves, "head": {"bias": np.zeros(3, np.float32)}}}
    measured = jax.device_get(jax.jit(histograms.measure)(trees))
    assert measured.keys() == {"parameters/levels_0", "parameters/head"}
    histogram = histograms.read(measured["parameters/levels_0"])
    values = np.concatenate([leaf.ravel() for leaf in leaves.values()])
    edges = np.concatenate([[-np.inf], histogram["bucket_limits"]])
    counts = [np.sum((low < values) & (values <= high)) for low, high in itertools.pairwise(edges)]
    assert histogram["bucket_counts"] == counts
    assert histogram["num"] == values.size
    assert (histogram["min"], histogram["max"]) == (values.min(), values.max())
    np.testing.assert_allclose(
        histogram["sum_squares"], np.sum(np.square(values, dtype=float)), rtol=1e-5
    )
    zeros = histograms.read(measured["parameters/head"])
    assert zeros["num"] == 3


def test_histograms_are_measured_at_their_steps_only():
    trees = {"gradients": {"head": {"bias": np.ones(3, np.float32)}}}
    measure = jax.jit(lambda step: histograms.measure_every(3, step, trees))
    assert histograms.read(jax.device_get(measure(7))["gradients/head"]) is None
    assert histograms.read(jax.device_get(measure(9))["gradients/head"])["sum"] == 3
