"""Two views: the loss of algorithm 1 in float64, over the whole batch on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist import NesT
from nest_dist.train import inputs, optimizer, step
from nest_dist.train.augment import erasing
from nest_dist.train.objectives import pretext, two_views

WIDTH = 6
MODEL = NesT(8, 2, 4, 1, 2, (1, 1), 0)
OBJECTIVE = two_views.TwoViews(WIDTH)
INPUTS = inputs.Inputs(inputs.Normalize((0.5,) * 3, (0.25,) * 3), None, erasing.RandomErasing(0.5))


def by_hand(projector, views):
    """Loss of the views [2, B, C] in float64, in the words of algorithm 1 of the paper."""
    projected = []
    for features in views:
        for layer in range(3):
            params = projector[f"layers_{layer}"]
            features = features @ params["kernel"]
            if layer < 2:
                features = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
                features = np.maximum(features * params["scale"] + params["bias"], 0)
        projected.append(features)
    z_a, z_b = projected
    sim_loss = np.mean((z_a - z_b) ** 2)
    std_loss = sum(np.mean(np.maximum(1 - np.sqrt(z.var(0, ddof=1) + 1e-4), 0)) for z in projected)
    cov_loss = 0.0
    for z in projected:
        cov = np.cov(z, rowvar=False)
        cov_loss += (cov**2).sum() - (np.diag(cov) ** 2).sum()
    return 25 * sim_loss + 25 * std_loss + cov_loss / projected[0].shape[1]


@pytest.fixture(scope="module")
def drawn():
    """Parameters of a projector, and features [2, B, C] of two views, in float64."""
    rng = np.random.default_rng(0)
    own = OBJECTIVE.init(MODEL, jax.random.key(0))
    own = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), own)
    features = rng.standard_normal((8, 8))
    views = np.stack([features, features + 0.3 * rng.standard_normal((8, 8))])
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), own), views


def ours(own, views, weights=None):
    features = jnp.asarray(views, jnp.float32).swapaxes(0, 1)
    weights = jnp.ones(len(features)) if weights is None else weights
    return OBJECTIVE.compared(own, features, weights)


@pytest.mark.medium
def test_the_loss_is_that_of_algorithm_1(drawn):
    own, views = drawn
    losses, metrics = ours(own, views)
    np.testing.assert_allclose(losses.mean(), by_hand(own["projector"], views), rtol=1e-5)
    total = 25 * metrics["invariance"] + 25 * metrics["variance"] + metrics["covariance"]
    np.testing.assert_allclose(losses, total, rtol=1e-6)
    assert (np.ptp(metrics["variance"]), np.ptp(metrics["covariance"])) == (0, 0)
    assert min(float(value.min()) for value in metrics.values()) > 0


@pytest.mark.medium
def test_gradients_are_the_slopes_of_that_loss(drawn):
    own, views = drawn
    in_float32 = jax.tree.map(jnp.float32, own)
    grads = jax.grad(lambda *at: ours(*at)[0].mean(), (0, 1))(in_float32, jnp.float32(views))
    rng = np.random.default_rng(1)
    flat, tree = jax.tree.flatten((own, views))
    for at in range(len(flat)):
        direction = [
            rng.standard_normal(np.shape(leaf)) * (at == it) for it, leaf in enumerate(flat)
        ]
        ends = []
        for sign in (1, -1):
            moved = [leaf + sign * 1e-6 * way for leaf, way in zip(flat, direction, strict=True)]
            moved_own, moved_views = jax.tree.unflatten(tree, moved)
            ends.append(by_hand(moved_own["projector"], moved_views))
        slope = (ends[0] - ends[1]) / 2e-6
        gradient = np.asarray(jax.tree.leaves(grads)[at], float)
        # float32 against float64, over products of three layers.
        size = np.linalg.norm(gradient) * np.linalg.norm(direction[at])
        assert abs((gradient * direction[at]).sum() - slope) < 1e-4 * size + 1e-5


def test_what_has_no_weight_does_not_count(drawn):
    own, views = drawn
    padded = np.concatenate([views, np.full((2, 3, 8), 7.0)], axis=1)
    losses, _ = ours(own, padded, jnp.float32([1] * 8 + [0] * 3))
    np.testing.assert_allclose(losses[:8], ours(own, views)[0], rtol=1e-5)
    alone, _ = ours(own, views[:, :1], jnp.ones(1))
    assert np.isfinite(alone).all()


def train_step(**mesh):
    return step.TrainStep(
        model=MODEL,
        inputs=INPUTS,
        objective=OBJECTIVE,
        optimizer=optimizer.AdamW(1e-3).build(lambda _: 1e-3, lambda name: 1.0),
        learning_rate=lambda _: jnp.float32(1e-3),
        sharding=layouts.layout(**mesh),
        seed=3,
    )


@functools.cache
def metrics_on(*mesh):
    """Of a first step on a mesh, given as pairs."""
    images = np.random.default_rng(2).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    trained = train_step(**dict(mesh))
    sharding = trained.sharding.sharding(step.VIEWS_AXES, images.shape)
    batch = {"image": jax.device_put(images, sharding)}
    _, metrics = jax.jit(trained)(jax.jit(trained.init)(), batch)
    # Adam's first step is the sign of each gradient, so those that are but rounding may turn.
    return {name: value for name, value in metrics.items() if name != "train/update_norm"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        [("data", 2)],
        [("data", 4)],
        pytest.param([("fsdp", 2), ("rows", 2)], marks=pytest.mark.slow),
    ],
)
def test_the_batch_is_compared_as_a_whole_on_any_mesh(mesh):
    alone, metrics = metrics_on(("data", 1)), metrics_on(*mesh)
    assert alone["train/covariance"] > 0
    for name in alone:
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-4, err_msg=name)


@pytest.mark.medium
def test_each_view_has_random_numbers_of_its_own_and_evaluation_sees_the_mirror_image():
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)
    twice = jnp.asarray(np.repeat(images[:, None], 2, axis=1))
    rows = jnp.arange(8)
    seen = pretext.augmented(INPUTS, pretext.as_examples(twice), jax.random.key(0), rows)
    assert any(not np.array_equal(seen[2 * row], seen[2 * row + 1]) for row in range(4))
    state = jax.jit(train_step(data=1).init)()
    network = pretext.Network(MODEL, state.params)
    evaluate = jax.jit(
        lambda images: OBJECTIVE.evaluate(network, images, {"weight": jnp.ones(4)})["loss"]
    )
    normalized = INPUTS.normalize(images)
    loss, mirrored = evaluate(normalized), evaluate(normalized[:, :, ::-1])
    np.testing.assert_allclose(loss, mirrored, rtol=1e-4)
    shown = OBJECTIVE.pictures(network, normalized)
    np.testing.assert_array_equal(shown[:, :, :8], shown[:, :, :7:-1])
