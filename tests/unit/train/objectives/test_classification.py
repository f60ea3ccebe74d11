import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.train.objectives import classification


@pytest.fixture(scope="module")
def logits():
    return jax.random.normal(jax.random.key(0), (6, 7))


def test_without_smoothing_the_loss_is_minus_the_log_probability(logits):
    labels = jnp.arange(6)
    found = classification.cross_entropy(logits, classification.smoothed_targets(labels, 7, 0.0))
    exponentials = np.exp(np.asarray(logits, np.float64))
    expected = -np.log(exponentials[range(6), range(6)] / exponentials.sum(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_smoothed_targets_are_distributions_with_the_stated_share():
    targets = classification.smoothed_targets(jnp.array([2]), 5, 0.1)
    np.testing.assert_allclose(targets[0], [0.02, 0.02, 0.92, 0.02, 0.02], rtol=1e-6)


def test_the_loss_is_lowest_at_the_target_itself():
    targets = classification.smoothed_targets(jnp.array([1]), 4, 0.2)
    gradient = jax.grad(lambda z: classification.cross_entropy(z, targets).sum())(jnp.log(targets))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_in_top_counts_the_label_among_the_highest():
    logits = jnp.array([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = jnp.arange(4)
    np.testing.assert_array_equal(
        classification.in_top(logits, labels, 1), [True, False, False, False]
    )
    np.testing.assert_array_equal(
        classification.in_top(logits, labels, 3), [True, True, True, False]
    )


@pytest.mark.parametrize("k", [1, 3])
def test_a_logit_that_is_nan_counts_against_the_label(k):
    highest = jnp.array([[9.0, 0.0, 0.0, 0.0, 0.0]])
    assert classification.in_top(highest, jnp.array([0]), k).all()
    for nans in range(1, 5):
        beside = highest.at[:, 5 - nans :].set(jnp.nan)
        assert classification.in_top(beside, jnp.array([0]), k).all() == (nans < k)


@pytest.mark.parametrize("k", [1, 5, 9])
def test_a_label_whose_logit_is_nan_is_never_right(k):
    for others in (0.0, jnp.inf, -jnp.inf, jnp.nan):
        logits = jnp.full((5, 5), others).at[jnp.diag_indices(5)].set(jnp.nan)
        assert not classification.in_top(logits, jnp.arange(5), k).any()


def test_the_predicted_class_is_none_where_a_logit_is_nan(logits):
    np.testing.assert_array_equal(classification.predicted(logits), np.argmax(logits, axis=-1))
    for column in range(7):
        found = classification.predicted(logits.at[2, column].set(jnp.nan))
        assert found[2] == classification.NO_CLASS
        assert (np.delete(found, 2) == np.delete(np.argmax(logits, axis=-1), 2)).all()


def test_a_model_that_says_the_same_of_all_classes_is_never_right():
    assert not classification.in_top(jnp.zeros((1, 10)), jnp.array([3]), 1).any()
