import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.data import targets
from nest_dist.train.augment import mixing
from nest_dist.train.objectives import class_weights, multi_label

B, CLASSES = 6, 5
A, P, U = targets.ABSENT, targets.PRESENT, targets.UNKNOWN


@pytest.fixture(scope="module")
def examples():
    """Logits [B, classes], and labels with an empty set, a full one and one that is unknown."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (B, CLASSES)).astype(np.uint8)
    labels[0], labels[1], labels[2] = A, P, U
    return rng.normal(0, 3, (B, CLASSES)).astype(np.float32), labels


def by_hand(logits, labels, weights=None):
    """The sum over the known classes of the negative logarithm of the chance of what is true."""
    chances = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    terms = -np.where(labels == P, np.log(chances), np.log1p(-chances)) * (labels != U)
    return (terms * (np.ones(CLASSES) if weights is None else weights)).sum(axis=-1)


def losses(logits, labels, augment=lambda images, answers: (images, answers), **fields):
    batch = {"image": jnp.zeros((len(labels), 2, 2, 1)), "labels": jnp.asarray(labels)}
    objective = multi_label.MultiLabel(**fields)
    return objective.losses(lambda _: jnp.asarray(logits), augment, batch, CLASSES)


def test_the_loss_is_the_sum_over_the_classes_that_are_known(examples):
    found, _ = losses(*examples)
    np.testing.assert_allclose(found, by_hand(*examples), rtol=1e-5)
    assert found[2] == 0  # nothing is known of it


def test_class_weights_are_factors_of_the_classes(examples):
    factors = (0.0, 0.5, 1.0, 2.0, 7.0)
    given = class_weights.ClassWeights(tuple(zip("abcde", factors, strict=True)))
    found, _ = losses(*examples, class_weights=given)
    np.testing.assert_allclose(found, by_hand(*examples, np.array(factors)), rtol=1e-5)


def test_what_is_unknown_has_no_gradient(examples):
    logits, labels = examples
    gradient = jax.grad(lambda z: losses(z, labels)[0].sum())(logits)
    np.testing.assert_array_equal(np.asarray(gradient)[labels == U], 0)
    chances = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = np.where(labels == U, 0, chances - (labels == P))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_loss_of_mixed_sets_is_the_mean_of_two_losses(examples):
    logits, labels = examples
    own = np.linspace(0, 1, B, dtype=np.float32)

    def augment(images, answers):
        """As mixup and CutMix change targets."""
        return images, own[:, None] * answers + (1 - own[:, None]) * mixing.partners(answers)

    found, _ = losses(logits, labels, augment)
    partners = labels.reshape(-1, 2, CLASSES)[:, ::-1].reshape(B, CLASSES)
    expected = own * by_hand(logits, labels) + (1 - own) * by_hand(logits, partners)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels", "right"),
    [
        ([3, 1, 2], [P, A, A], True),
        ([3, 1, 2], [A, P, P], False),
        ([3, 1, 2], [P, A, P], True),
        ([3, 1, 2], [U, A, P], True),
        ([3, 3, 2], [P, A, A], False),
        ([3, 3, 2], [P, P, A], True),
        ([3, 1, 2], [A, A, A], False),
        ([3, 1, 2], [U, U, U], False),
        ([3, 1, 2], [P, P, P], True),
        ([np.nan, 1, 2], [P, A, A], False),
        ([3, np.nan, 2], [P, A, A], False),
        ([np.nan, 3, 2], [P, P, A], False),
    ],
)
def test_the_highest_known_logit_is_right_if_it_belongs_to_the_set(logits, labels, right):
    logits, labels = jnp.array([logits], jnp.float32), np.array([labels], np.uint8)
    assert multi_label.best_is_right(logits, labels).tolist() == [right]
    assert losses(logits, labels)[1]["precision_at_1"].tolist() == [right]


def test_evaluation_gives_scores_and_leaves_out_padding(examples):
    logits, labels = examples
    weight = jnp.array([1, 1, 1, 1, 0, 0], jnp.float32)
    batch = {"labels": jnp.asarray(labels), "weight": weight}
    measured = multi_label.MultiLabel().evaluate(jnp.asarray(logits), batch)
    np.testing.assert_allclose(measured["loss"], by_hand(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(measured["scores"], logits)
    np.testing.assert_array_equal(measured["labels"][:4], labels[:4])
    assert (measured["labels"][4:] == U).all()
    assert measured["labels"].dtype == jnp.uint8
    known = np.where(labels == U, -np.inf, logits)
    guessed = np.delete(np.asarray(measured["predicted"]), [2])  # of which nothing is known
    np.testing.assert_array_equal(guessed, np.delete(known.argmax(1), [2]))


def test_without_average_precision_no_scores_are_kept(examples):
    logits, labels = examples
    objective = multi_label.MultiLabel(average_precision=False)
    batch = {"labels": jnp.asarray(labels), "weight": jnp.ones(B)}
    assert objective.evaluate(jnp.asarray(logits), batch).keys() == {
        "loss",
        "precision_at_1",
        "predicted",
    }
    assert "mean_average_precision" not in objective.measures(CLASSES)
    assert "mean_average_precision" in multi_label.MultiLabel().measures(CLASSES)
