"""The step on a model of one matrix, whose loss can be computed by hand from what is shown."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import layouts

from nest_dist.telemetry import histograms
from nest_dist.train import inputs, optimizer, parameter_rules, spikes, step
from nest_dist.train.augment import erasing, jitter, mixing
from nest_dist.train.objectives import classification

PIXELS = inputs.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RECIPE = inputs.Inputs(
    PIXELS,
    jitter.ColorJitter(strength=0.3),
    erasing.RandomErasing(probability=0.5),
    mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0),
)
CLASSES, SIDE, SEED = 5, 8, 3
STEPS_DONE = 6


class Matrix:
    """A model of one product."""

    num_classes = CLASSES

    def apply(self, variables, images, **_):
        return images.reshape(len(images), -1) @ variables["params"]["head"]["kernel"]


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(8) % CLASSES}


def train_step(recipe=RECIPE, **options):
    return step.TrainStep(
        model=Matrix(),
        inputs=recipe,
        objective=classification.Classification(),
        optimizer=optimizer.AdamW(1e-3).build(lambda _: 1e-3, lambda name: 1.0),
        learning_rate=lambda _: jnp.float32(1e-3),
        sharding=layouts.layout(data=1),
        seed=SEED,
        **options,
    )


@pytest.fixture(scope="module")
def before():
    kernel = jax.random.normal(jax.random.key(0), (SIDE * SIDE * 3, CLASSES))
    first = train_step().init_from({"head": {"kernel": kernel / 10}})
    return dataclasses.replace(first, step=jnp.int32(STEPS_DONE))


def test_what_is_shown_is_what_the_step_is_given(batch, before):
    _, metrics = jax.jit(train_step())(before, batch)
    show = jax.jit(train_step().model_inputs)
    labels = jax.nn.one_hot(batch["label"], CLASSES)
    images, shares = show(before.step, batch["image"], labels)
    logits = Matrix().apply({"params": before.params}, images)
    by_hand = classification.cross_entropy(logits, shares).mean()
    np.testing.assert_allclose(metrics["train/loss"], by_hand, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(images, show(before.step + 1, batch["image"], labels)[0])


def test_shown_pixels_are_those_of_the_picture(batch):
    np.testing.assert_array_equal(PIXELS.inverted(PIXELS(batch["image"])), batch["image"])
    extremes = PIXELS.inverted(jnp.full((1, 2, 2, 3), 100.0) * jnp.asarray([1, -1])[:, None])
    np.testing.assert_array_equal(np.unique(extremes), [0, 255])


def test_histograms_come_at_their_steps_and_change_nothing(batch, before):
    plainly = inputs.Inputs(PIXELS)
    after, plain = jax.jit(train_step(plainly))(before, batch)
    for every, due in ((7, True), (2, False)):
        observing = jax.jit(
            train_step(plainly, observe=functools.partial(histograms.measure_every, every))
        )
        observed, metrics = observing(before, batch)
        vectors = {name: metrics.pop(name) for name in metrics.keys() - plain.keys()}
        assert vectors.keys() == {"parameters/head", "gradients/head"}
        np.testing.assert_array_equal(
            observed.params["head"]["kernel"], after.params["head"]["kernel"]
        )
        assert metrics == plain
        found = {name: histograms.read(np.asarray(vector)) for name, vector in vectors.items()}
        if not due:
            assert list(found.values()) == [None, None]
            continue
        kernel = after.params["head"]["kernel"]
        assert found["parameters/head"]["num"] == kernel.size
        assert found["parameters/head"]["max"] == kernel.max()
        gradient_norm = found["gradients/head"]["sum_squares"] ** 0.5
        np.testing.assert_allclose(gradient_norm, plain["train/gradient_norm"], rtol=1e-5)


def test_a_model_that_gives_nan_is_never_right(batch, before):
    plainly = train_step(inputs.Inputs(PIXELS))
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, before.params)
    _, metrics = jax.jit(plainly)(dataclasses.replace(before, params=params), batch)
    assert metrics["train/accuracy"] == 0
    counted = jax.jit(plainly.evaluate)(params, {**batch, "weight": jnp.ones(8)})
    assert counted["examples"] == 8
    assert counted["top_1"] == 0
    assert "top_5" not in counted  # of five classes every label is in it
    assert (counted["predicted"] == classification.NO_CLASS).all()


def same(left, right):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right)))


def broken(before):
    """A state whose next loss is not finite."""
    return dataclasses.replace(before, params=jax.tree.map(lambda x: x * jnp.inf, before.params))


def test_a_good_step_is_the_same_where_updates_may_be_skipped(batch, before):
    after, metrics = jax.jit(train_step())(before, batch)
    skipping, more = jax.jit(train_step(skip_nonfinite=True))(before, batch)
    # As programs they differ, so XLA may round elsewhere.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, 1e-5), after, skipping)
    assert int(after.step) == STEPS_DONE + 1
    assert "train/skipped" not in metrics
    assert more["train/skipped"] == 0


def test_an_update_that_is_not_finite_is_skipped_but_its_step_is_counted(batch, before):
    bad = broken(before)
    after, metrics = jax.jit(train_step(skip_nonfinite=True, ema_decay=0.9))(
        dataclasses.replace(bad, ema=before.params), batch
    )
    counts = optax.tree.get_all_with_path(after.optimizer, "count")
    # Adam's count of updates stays, the schedule's count of steps does not.
    assert [int(count) for _, count in counts] == [0, STEPS_DONE + 1]
    kept = dataclasses.replace(bad, step=before.step + 1, ema=before.params)
    assert same(dataclasses.replace(after, optimizer=bad.optimizer), kept)
    unchanged = optax.tree.set(after.optimizer, lambda *_: True, count=jnp.int32(0))
    assert same(unchanged, bad.optimizer)
    assert metrics["train/skipped"] == 1
    without, _ = jax.jit(train_step())(bad, batch)
    assert not np.isfinite(without.params["head"]["kernel"]).any()


def test_after_a_skipped_update_the_learning_rate_is_that_of_the_step(batch, before):
    def schedule(step):
        return 1e-3 * (1 + step)

    stepping = train_step(skip_nonfinite=True)
    adamw = optimizer.AdamW(1e-3).build(schedule, lambda name: 1.0)
    stepping = dataclasses.replace(stepping, optimizer=adamw, learning_rate=schedule)
    begun = dataclasses.replace(before, step=jnp.int32(0))
    skipped, _ = jax.jit(stepping)(broken(begun), batch)
    skipped = dataclasses.replace(skipped, params=begun.params)
    after, metrics = jax.jit(stepping)(skipped, batch)
    # The first update of Adam moves each weight by the learning rate.
    moved = np.abs(after.params["head"]["kernel"] - begun.params["head"]["kernel"])
    assert metrics["train/learning_rate"] == pytest.approx(2e-3)
    assert np.median(moved) == pytest.approx(2e-3, rel=0.05)


def test_the_moving_average_follows_the_parameters_and_is_what_is_evaluated(batch, before):
    averaging = train_step(inputs.Inputs(PIXELS), ema_decay=0.3)
    current = averaging.init_from(before.params)
    expected, decays = before.params["head"]["kernel"], []
    stepped = jax.jit(averaging)
    for number in range(8):
        current, _ = stepped(current, batch)
        # At first it forgets faster, or the first values would stay in it for long.
        decays.append(min(0.3, (1 + number) / (10 + number)))
        kernel = current.params["head"]["kernel"]
        expected = decays[-1] * expected + (1 - decays[-1]) * kernel
    assert decays[0] == 0.1
    assert decays[-1] == 0.3
    np.testing.assert_allclose(current.evaluated["head"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(expected, kernel, rtol=1e-5)


def test_without_an_average_the_parameters_are_evaluated(batch, before):
    after, _ = jax.jit(train_step())(before, batch)
    assert after.ema is None
    assert after.evaluated is after.params


class Sum(Matrix):
    """A model of two products, added."""

    def apply(self, variables, images, **_):
        params, flat = variables["params"], images.reshape(len(images), -1)
        return sum(flat @ params[name]["kernel"] for name in ("head", "body"))


@pytest.mark.slow
def test_what_is_frozen_has_no_gradient_and_no_state_and_the_rest_trains_as_ever(batch, before):
    kernel = before.params["head"]["kernel"]
    params = {"head": {"kernel": kernel}, "body": {"kernel": kernel[::-1]}}
    rules = parameter_rules.ParameterRules(frozen=("body/*",)).build((), ())
    whole = dataclasses.replace(train_step(), model=Sum())
    partial = dataclasses.replace(whole, treatments=rules)
    states = [each.init_from(params) for each in (whole, partial)]
    assert set(states[1].optimizer[0].mu) == {"head"}
    (one, _), (other, metrics) = (
        jax.jit(each)(state, batch) for each, state in zip((whole, partial), states, strict=True)
    )
    np.testing.assert_array_equal(other.params["body"]["kernel"], kernel[::-1])
    np.testing.assert_allclose(other.params["head"]["kernel"], one.params["head"]["kernel"], 1e-5)
    moment = one.optimizer[0].mu["head"]["kernel"]
    # The first moment is a tenth of the gradient.
    np.testing.assert_allclose(metrics["train/gradient_norm"], 10 * jnp.linalg.norm(moment), 1e-5)
    _, norms = jax.jit(partial.examine)(states[1], batch)
    assert set(norms) == {"head"}


def test_a_spike_is_left_out_and_the_next_step_goes_on(batch, before):
    watchful = train_step(spikes=spikes.SpikeRule(deviations=3.0, memory_steps=3), ema_decay=0.9)
    current = watchful.init_from(before.params)
    stepped = jax.jit(watchful)
    for _ in range(4):
        current, metrics = stepped(current, batch)
        assert metrics["train/spike"] == 0
    # A gradient a thousand times as long as before.
    steep = dataclasses.replace(
        current, params=jax.tree.map(lambda leaf: 1e3 * leaf, current.params)
    )
    after, metrics = stepped(steep, batch)
    assert metrics["train/spike"] == 1
    assert same(after.params, steep.params)
    assert same(after.ema, steep.ema)
    assert same(after.optimizer[0], steep.optimizer[0])
    assert int(after.step) == int(after.spikes["steps"]) == 5
    again, metrics = stepped(dataclasses.replace(after, params=current.params), batch)
    assert metrics["train/spike"] == 0
    assert not same(again.params, current.params)
