import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.train import inputs, teacher
from nest_dist.train.objectives import distillation

B, CLASSES = 6, 5
LABELS = np.arange(B) % CLASSES


@pytest.fixture(scope="module")
def logits():
    """Of the model that learns and of its teacher."""
    return np.random.default_rng(0).normal(0, 3, (2, B, CLASSES)).astype(np.float32)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def losses(logits, augment=lambda *it: it, **fields):
    config = distillation.Distillation(teacher="elsewhere", **fields)
    batch = {"image": jnp.zeros((B, 2, 2, 1)), "label": jnp.asarray(LABELS)}
    outputs = jnp.concatenate(list(logits), axis=-1)
    return config.losses(lambda _: outputs, augment, batch, CLASSES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_are_the_divergence_from_the_teacher(logits, temperature):
    found, _ = losses(logits, temperature=temperature)
    learnt, taught = log_softmax(logits / temperature)
    expected = temperature**2 * (np.exp(taught) * (taught - learnt)).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    same, _ = losses(np.stack([logits[1], logits[1]]), temperature=temperature)
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_hard_targets_are_the_likeliest_class_of_the_teacher(logits):
    found, metrics = losses(logits, targets="hard")
    learnt, chosen = log_softmax(logits[0]), logits[1].argmax(axis=-1)
    np.testing.assert_allclose(found, -learnt[np.arange(B), chosen], rtol=1e-5)
    np.testing.assert_array_equal(metrics["agreement"], logits[0].argmax(axis=-1) == chosen)
    np.testing.assert_array_equal(metrics["accuracy"], logits[0].argmax(axis=-1) == LABELS)


def test_labels_have_their_share_of_the_loss(logits):
    alone, _ = losses(logits, temperature=2.0)
    found, _ = losses(logits, temperature=2.0, label_weight=0.3, label_smoothing=0.1)
    targets = np.eye(CLASSES)[LABELS] * 0.9 + 0.1 / CLASSES
    of_labels = -(targets * log_softmax(logits[0])).sum(axis=-1)
    np.testing.assert_allclose(found, 0.7 * alone + 0.3 * of_labels, rtol=1e-5)


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_a_teacher_that_gives_nan_gives_no_loss_that_is_finite(logits, targets):
    learnt, taught = logits
    taught = taught.copy()
    taught[2, 1] = np.nan
    found, _ = losses(np.stack([learnt, taught]), targets=targets)
    np.testing.assert_array_equal(np.isnan(found), np.arange(B) == 2)


def test_fields_without_a_meaning_are_refused():
    with pytest.raises(failures.BadInput, match=r"label_smoothing is 0.1, but Distillation.label_"):
        distillation.Distillation(teacher="elsewhere", label_smoothing=0.1)
    with pytest.raises(failures.BadInput, match=r"temperature is 2.0, but Distillation.targets is"):
        distillation.Distillation(teacher="elsewhere", targets="hard", temperature=2.0)


class Means:
    """A model whose outputs are the mean of each channel times a parameter."""

    def apply(self, variables, images):
        return images.mean(axis=(1, 2)) * variables["params"]["scale"]


def test_a_teacher_sees_the_same_images_in_its_own_normalization_and_learns_nothing():
    ours = inputs.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    its = inputs.Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    stored = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    images, scale = ours(jnp.asarray(stored)), {"scale": jnp.float32(3.0)}
    learner = teacher.Teacher(Means(), its, ours, columns=(2, 0))
    expected = 3 * np.asarray(its(jnp.asarray(stored))).mean(axis=(1, 2))[:, [2, 0]]
    np.testing.assert_allclose(learner(scale, images), expected, rtol=1e-4)
    both = learner.beside(lambda seen: seen.sum(axis=(1, 2)), scale)(images)
    assert both.shape == (2, 5)
    np.testing.assert_allclose(both[:, 3:], expected, rtol=1e-4)
    gradients = jax.grad(lambda p, x: learner(p, x).sum(), argnums=(0, 1))(scale, images)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))
