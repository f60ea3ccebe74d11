import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.train.objectives import class_weights, classification

NAMES = ("cat", "dog", "yak", "emu")
COUNTS = (8, 2, 0, 5)


def test_factors_are_given_by_name():
    given = class_weights.ClassWeights(given=(("yak", 4.0), ("cat", 0.5)))
    assert given.of_classes(NAMES, None) == (("cat", 0.5), ("dog", 1.0), ("yak", 4.0), ("emu", 1.0))


def test_balanced_classes_have_the_same_influence_and_the_mean_factor_is_one():
    factors = dict(class_weights.ClassWeights(by_counts=1.0).of_classes(NAMES, COUNTS))
    influence = [factors[name] * count for name, count in zip(NAMES, COUNTS, strict=True)]
    np.testing.assert_allclose(influence, [5, 5, 0, 5])
    assert sum(influence) == pytest.approx(sum(COUNTS))
    assert factors["yak"] == 1  # nothing says how rare it is


def test_an_exponent_balances_less_and_a_given_factor_counts_more():
    weights = class_weights.ClassWeights((("dog", 9.0),), by_counts=0.5)
    factors = dict(weights.of_classes(NAMES, COUNTS))
    assert factors["cat"] == pytest.approx((5 / 8) ** 0.5)
    assert factors["dog"] == 9


def test_the_loss_of_an_example_is_weighed_by_its_targets():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    labels, factors = jnp.array([0, 2, 3]), np.array([0.5, 1.0, 4.0, 2.0])
    weights = class_weights.ClassWeights(tuple(zip(NAMES, factors.tolist(), strict=True)))
    objective = classification.Classification(label_smoothing=0.1, class_weights=weights)
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "label": labels}
    found, _ = objective.losses(lambda _: jnp.asarray(logits), lambda *it: it, batch, 4)
    exponentials = np.exp(logits.astype(np.float64))
    chances = exponentials / exponentials.sum(axis=1, keepdims=True)
    targets = np.eye(4)[np.asarray(labels)] * 0.9 + 0.1 / 4
    np.testing.assert_allclose(found, -(factors * targets * np.log(chances)).sum(1), rtol=1e-5)
    plain = classification.Classification().evaluate(jnp.asarray(logits), batch)
    measured = objective.evaluate(jnp.asarray(logits), batch)
    np.testing.assert_array_equal(measured["loss"], plain["loss"])


def test_an_objective_gets_a_factor_for_every_class():
    plain = classification.Classification()
    assert class_weights.resolved(plain, NAMES, None, 4) is plain
    weighed = classification.Classification(class_weights=class_weights.ClassWeights((("yak", 2),)))
    complete = class_weights.resolved(weighed, NAMES, None, 4).class_weights
    np.testing.assert_array_equal(class_weights.array(complete, 4), [1, 1, 2, 1])
    # Without data no names are known, and the step takes as long.
    absent = class_weights.resolved(weighed, (), None, 4).class_weights
    np.testing.assert_array_equal(class_weights.array(absent, 4), [1, 1, 1, 1])
    assert class_weights.left_out(weighed) == plain


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"given": (("cat", -1.0),)}, r"ClassWeights.given has -1.0 for class 'cat'; give a nu"),
        ({"given": (("cat", float("nan")),)}, r"ClassWeights.given is nan; give a number"),
        ({"given": (("cat", 1.0), ("cat", 2.0))}, r"names a class twice; give each class one fac"),
        ({"by_counts": 1.5}, r"ClassWeights.by_counts is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_factors_that_mean_nothing_are_refused(fields, text):
    with pytest.raises(failures.BadInput, match=text):
        class_weights.ClassWeights(**fields)


def test_unknown_classes_and_missing_counts_are_refused():
    with pytest.raises(failures.BadInput, match=r"a class in ClassWeights.given is 'doge', which"):
        class_weights.ClassWeights((("doge", 1.0),)).of_classes(NAMES, None)
    with pytest.raises(failures.BadInput, match=r"by_counts is 1.0, but the training data do not"):
        class_weights.ClassWeights(by_counts=1.0).of_classes(NAMES, None)
