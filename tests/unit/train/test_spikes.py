"""The rule for spikes on numbers alone, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.refusals import refusal

from nest_dist.train import spikes

RULE = spikes.SpikeRule(deviations=4.0, memory_steps=20)


def judged(losses, norms=None, rule=RULE):
    """Which steps are spikes, and the last state."""
    norms = [1.0] * len(losses) if norms is None else norms

    def step(state, values):
        is_spike, state = rule(state, dict(zip(spikes.WATCHED, values, strict=True)))
        return state, is_spike

    values = jnp.float32(losses), jnp.float32(norms)
    state, found = jax.lax.scan(step, rule.init(), values)
    return np.flatnonzero(found).tolist(), state


def ordinary(count):
    return 2 + 0.1 * np.random.default_rng(0).normal(size=count)


def test_a_step_far_above_the_recent_ones_is_a_spike_and_one_below_is_none():
    losses = ordinary(60)
    losses[[30, 50]] = 9, -9
    assert judged(losses)[0] == [30]
    norms = np.ones(60)
    norms[40] = 5
    assert judged(ordinary(60), norms)[0] == [40]


def test_the_first_steps_are_never_spikes():
    losses = ordinary(40)
    losses[[0, 5, 19]] = 50
    assert judged(losses)[0] == []


def test_mean_and_variance_are_those_of_the_first_steps():
    losses = ordinary(20)
    _, state = judged(losses)
    np.testing.assert_allclose(state["loss"]["mean"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(state["loss"]["variance"], losses.var(), rtol=1e-4)
    assert state["steps"] == 20


def test_a_rise_that_lasts_is_accepted_after_a_while():
    losses = ordinary(120)
    losses[40:] += 3
    found, _ = judged(losses)
    assert found[0] == 40
    assert 1 < len(found) < 20


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_spike_and_is_forgotten(bad):
    losses = ordinary(40)
    expected = judged(losses)[1]
    found, state = judged(np.insert(losses, [0, 30], bad))
    assert found == []
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_memory_of_one_step_is_refused():
    text = "SpikeRule.memory_steps is 1; it must be at least 2."
    with refusal(text):
        spikes.SpikeRule(memory_steps=1)
