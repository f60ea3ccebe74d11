import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.train import losses


@pytest.fixture(scope="module")
def logits():
    return jax.random.normal(jax.random.key(0), (6, 7))


def test_without_smoothing_the_loss_is_minus_the_log_probability(logits):
    labels = jnp.arange(6)
    found = losses.cross_entropy(logits, losses.smoothed_targets(labels, 7, 0.0))
    exponentials = np.exp(np.asarray(logits, np.float64))
    expected = -np.log(exponentials[range(6), range(6)] / exponentials.sum(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_smoothed_targets_are_distributions_with_the_stated_share():
    targets = losses.smoothed_targets(jnp.array([2]), 5, 0.1)
    np.testing.assert_allclose(targets[0], [0.02, 0.02, 0.92, 0.02, 0.02], rtol=1e-6)


def test_the_loss_is_lowest_at_the_target_itself():
    targets = losses.smoothed_targets(jnp.array([1]), 4, 0.2)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, targets).sum())(jnp.log(targets))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_in_top_counts_the_label_among_the_highest():
    logits = jnp.array([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = jnp.arange(4)
    np.testing.assert_array_equal(losses.in_top(logits, labels, 1), [True, False, False, False])
    np.testing.assert_array_equal(losses.in_top(logits, labels, 3), [True, True, True, False])


def test_a_model_that_says_the_same_of_all_classes_is_never_right():
    assert not losses.in_top(jnp.zeros((1, 10)), jnp.array([3]), 1).any()
