import re

import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.train import optimizer, schedules

PARAMS = {"levels_0": {"position_embedding": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}


def adamw():
    return optimizer.AdamW(peak_learning_rate=0.1, weight_decay=0.5)


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    schedule = schedules.Cosine(warmup_epochs=1).build(0.1, num_steps=110, steps_per_epoch=10)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10)], [0, 0.05, 0.1], rtol=1e-6)
    halfway = 10 + 50
    np.testing.assert_allclose(schedule(halfway), 0.05, rtol=1e-5)
    np.testing.assert_allclose(schedule(110), 0, atol=1e-8)


def test_weight_decay_spares_what_is_named_and_nothing_else():
    rule = adamw().build(lambda step: 0.1, ["*/position_embedding"])
    zeros = {"levels_0": {"position_embedding": jnp.zeros(3)}, "head": {"kernel": jnp.zeros(3)}}
    updates, _ = rule.update(zeros, rule.init(PARAMS), PARAMS)
    # With gradients of zero, what is left is decay: learning rate x decay.
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["levels_0"]["position_embedding"], 0)


def test_a_name_that_no_parameter_has_is_refused():
    rule = adamw().build(lambda step: 0.1, ["*/pos_embed"])
    text = "'*/pos_embed' names parameters without weight decay, but no parameter fits it"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        rule.init(PARAMS)


def test_a_warm_up_as_long_as_the_run_is_refused():
    text = "Cosine.warmup_epochs is 1.0, which is 10 steps of a run of 10; lower it or raise"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        schedules.Cosine(warmup_epochs=1.0).build(0.1, num_steps=10, steps_per_epoch=10)


def test_a_final_learning_rate_above_the_peak_is_refused():
    text = "Cosine.final_learning_rate is 0.2; it must be in [0, 0.1]."
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        schedules.Cosine(0, final_learning_rate=0.2).build(0.1, num_steps=10, steps_per_epoch=10)
