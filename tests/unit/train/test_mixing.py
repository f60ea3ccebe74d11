import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats
from support.refusals import refusal

from nest_dist.rehearsal import collectives, estimates
from nest_dist.train.augment import mixing

MIXUP = mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mixup_share=1.0)
CUTMIX = mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mixup_share=0.0)
RECIPE = mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)


def pair_batch(B: int = 8, side: int = 16) -> tuple[jax.Array, jax.Array]:
    """Even rows are 0 everywhere, odd rows 1; targets likewise: a picture shows what it holds."""
    row = (jnp.arange(B) % 2).astype(jnp.float32)
    images = jnp.broadcast_to(row[:, None, None, None], (B, side, side, 3))
    return images, jax.nn.one_hot(jnp.arange(B) % 2, 2)


ALPHAS = [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0, 1.01, 1.5, 2.0, 4.0, 8.0, 15.0, 16.0, 17.0]
ALPHAS += [20.0, 32.0, 64.0, 149.0, 150.0, 200.0, 500.0, 1000.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_shares_follow_the_beta_distribution(alpha):
    draws = np.asarray(mixing.beta(jax.random.split(jax.random.key(0), 20000), alpha))
    # Rounded as the draws are: at alpha 0.05, a fifth of all shares lie within 6e-8 of 1.
    reference = stats.beta.ppf((np.arange(20000) + 0.5) / 20000, alpha, alpha).astype(np.float32)
    reference[reference < np.finfo(np.float32).tiny] = 0
    # One sample of 20,000 has 1.95 / sqrt(20,000) at one in 1,000.
    assert stats.ks_2samp(draws, reference, method="asymp").statistic < 0.014


@pytest.mark.parametrize("alpha", ALPHAS)
def test_even_draws_give_the_quantiles_of_the_beta_distribution(alpha, monkeypatch):
    even = (np.arange(20000) + 0.5) / 20000
    monkeypatch.setattr(mixing.rng, "uniform", lambda keys: jnp.asarray(even, jnp.float32))
    found = np.asarray(mixing.beta(jnp.zeros(20000), alpha), np.float64)
    expected, deviation = stats.beta.ppf(even, alpha, alpha), stats.beta.std(alpha, alpha)
    # Outermost, 1 / 4096 of the draws lie between two entries of the table.
    inner = np.abs(even - 0.5) < 0.5 - 1 / 4096
    # The entries' distance is largest in the tails: a hundredth of a deviation.
    assert np.abs(found - expected)[inner].max() < 0.01 * deviation
    assert np.abs(found.reshape(20, -1).mean(1) - expected.reshape(20, -1).mean(1)).max() < (
        0.001 * deviation
    )
    assert abs(found.std() / deviation - 1) < 0.001


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_up_to_alpha_1_a_draw_is_a_root_of_order_alpha_to_the_last_bit(alpha):
    # So drew the runs on record; they must be repeatable.
    t = np.linspace(0, 0.5**alpha, 16 * 4097)
    density = (1 - t ** (1 / alpha)) ** (alpha - 1)
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    table = np.interp(np.linspace(0, 1, 4097), share / share[-1], t).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn = mixing.rng.uniform(keys)
    half = jnp.interp(2 * jnp.minimum(drawn, 1 - drawn), jnp.linspace(0, 1, 4097), table)
    value = half ** (1 / alpha)
    expected = jnp.where(drawn < 0.5, value, 1 - value)
    np.testing.assert_array_equal(mixing.beta(keys, alpha), expected)


@pytest.mark.medium
@pytest.mark.parametrize("mix", [MIXUP, CUTMIX, RECIPE])
def test_targets_hold_as_much_of_each_class_as_the_pixels(mix):
    images, targets = pair_batch()
    for number in range(20):
        mixed, mixed_targets = mix(images, targets, jax.random.key(number), jnp.arange(len(images)))
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), mixed_targets[:, 1], atol=1e-5)
        np.testing.assert_allclose(mixed_targets.sum(-1), 1, atol=1e-6)


def test_mixup_keeps_at_least_half_of_the_own_picture():
    shares = MIXUP.mixup_shares((5000, 2, 2, 3), jax.random.split(jax.random.key(0), 5000))[:, 0, 0]
    assert float(shares.min()) >= 0.5
    draws = np.random.default_rng(0).beta(0.8, 0.8, 200000)
    assert abs(float(shares.mean()) - np.maximum(draws, 1 - draws).mean()) < 0.012


def test_cutmix_cuts_one_rectangle_inside_the_picture():
    amounts, places = (jax.random.split(jax.random.key(seed), 4000) for seed in range(2))
    masks = np.asarray(CUTMIX.cutmix_masks((4000, 32, 32, 3), amounts, places))
    holes = 1 - masks
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(holes.sum((1, 2)), rows * columns)  # filled, in one piece
    area = holes.mean((1, 2))
    assert abs(area.mean() - 0.5) < 0.025  # Beta(1, 1) is even; five standard deviations
    counts, _ = np.histogram(area, bins=4, range=(0, 1.001))
    assert np.abs(counts / 4000 - 0.25).max() < 0.05  # sides are whole pixels
    assert (np.abs(rows - columns) <= 0).all()
    # Each corner of the picture is covered as often as the others.
    corners = [holes[:, y, x].mean() for y in (0, -1) for x in (0, -1)]
    assert max(corners) - min(corners) < 0.03


def test_half_of_the_steps_are_mixup_and_half_cutmix():
    images, targets = pair_batch(2)
    mix = jax.jit(RECIPE.__call__)
    cut = 0
    for number in range(400):
        mixed, _ = mix(images, targets, jax.random.key(number), jnp.arange(len(images)))
        cut += len(np.unique(np.asarray(mixed)[0])) == 2 or float(mixed[0, 0, 0, 0]) in (0.0, 1.0)
    assert abs(cut - 200) < 50  # five standard deviations


def test_partners_are_neighbours():
    np.testing.assert_array_equal(mixing.partners(jnp.arange(6)), [1, 0, 3, 2, 5, 4])


@pytest.mark.medium
def test_a_pair_never_sees_another_pair():
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    targets = jnp.eye(4)
    whole, _ = RECIPE(images, targets, jax.random.key(0), jnp.arange(4))
    blanked, _ = RECIPE(images.at[:2].set(0), targets, jax.random.key(0), jnp.arange(4))
    np.testing.assert_array_equal(whole[2:], blanked[2:])
    assert not np.allclose(whole[:2], blanked[:2])


def test_mixing_needs_no_communication_between_devices():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images, targets = pair_batch()
    mix = jax.jit(
        RECIPE.__call__, in_shardings=(sharding, sharding, None, sharding), out_shardings=sharding
    )
    compiled = mix.lower(images, targets, jax.random.key(0), jnp.arange(len(images))).compile()
    assert collectives.read(estimates.read(compiled.as_text()), mesh) == []


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1e-17, 1001.0, math.inf, math.nan])
@pytest.mark.parametrize("field", ["mixup_alpha", "cutmix_alpha"])
def test_an_alpha_whose_draws_would_not_be_right_is_refused(field, alpha):
    text = f"Mixing.{field} is {alpha}; it must be in [0.001, 1000]."
    with refusal(text):
        mixing.Mixing(**{"mixup_alpha": 0.8, "cutmix_alpha": 1.0, field: alpha})
