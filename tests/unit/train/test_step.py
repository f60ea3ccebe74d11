"""The step on a model of one matrix, whose loss can be computed by hand from what is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist.telemetry import histograms
from nest_dist.train import erasing, inputs, jitter, losses, mixing, optimizer, pixels, state, step

PIXELS = pixels.Pixels(mean=(0.485, 0.456, 0.406), standard_deviation=(0.229, 0.224, 0.225))
RECIPE = inputs.Inputs(
    PIXELS,
    jitter.ColorJitter(strength=0.3),
    erasing.RandomErasing(probability=0.5),
    mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0),
)
CLASSES, SIDE, SEED = 5, 8, 3
STEPS_DONE = 6


def forward(params, images, key, rows):
    return images.reshape(len(images), -1) @ params["head"]["kernel"]


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(8) % CLASSES}


@pytest.fixture(scope="module")
def rule():
    return optimizer.AdamW(1e-3, 0).build(lambda _: 1e-3, ())


@pytest.fixture(scope="module")
def before(rule):
    kernel = jax.random.normal(jax.random.key(0), (SIDE * SIDE * 3, CLASSES))
    first = state.first(rule, False, {"head": {"kernel": kernel / 10}})
    return state.TrainState(jnp.int32(STEPS_DONE), first.params, first.optimizer)


def train_step(rule, recipe, **options):
    return jax.jit(
        step.train_step(
            forward,
            recipe,
            rule,
            lambda _: jnp.float32(1e-3),
            layouts.layout(data=1),
            num_classes=CLASSES,
            label_smoothing=0.0,
            seed=SEED,
            **options,
        )
    )


def test_what_is_shown_is_what_the_step_is_given(batch, before, rule):
    _, metrics = train_step(rule, RECIPE)(before, batch)
    show = jax.jit(step.shown_inputs(RECIPE, num_classes=CLASSES, seed=SEED))
    images, shares = show(before.step, batch)
    by_hand = losses.cross_entropy(forward(before.params, images, None, None), shares).mean()
    np.testing.assert_allclose(metrics["train/loss"], by_hand, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(images, show(before.step + 1, batch)[0])


def test_shown_pixels_are_those_of_the_picture(batch):
    np.testing.assert_array_equal(PIXELS.inverted(PIXELS(batch["image"])), batch["image"])
    extremes = PIXELS.inverted(jnp.full((1, 2, 2, 3), 100.0) * jnp.asarray([1, -1])[:, None])
    np.testing.assert_array_equal(np.unique(extremes), [0, 255])


def test_histograms_come_at_their_steps_and_change_nothing(batch, before, rule):
    plainly = inputs.Inputs(PIXELS)
    after, plain = train_step(rule, plainly)(before, batch)
    for every, due in ((7, True), (2, False)):
        observed, metrics = train_step(rule, plainly, histograms_every=every)(before, batch)
        vectors = {name: metrics.pop(name) for name in metrics.keys() - plain.keys()}
        assert vectors.keys() == {"parameters/head", "gradients/head"}
        np.testing.assert_array_equal(
            observed.params["head"]["kernel"], after.params["head"]["kernel"]
        )
        assert metrics == plain
        found = {name: histograms.read(np.asarray(vector)) for name, vector in vectors.items()}
        if not due:
            assert set(found.values()) == {None}
            continue
        kernel = after.params["head"]["kernel"]
        assert found["parameters/head"].num == kernel.size
        assert found["parameters/head"].max == kernel.max()
        gradient_norm = found["gradients/head"].sum_squares ** 0.5
        np.testing.assert_allclose(gradient_norm, plain["train/gradient_norm"], rtol=1e-5)
