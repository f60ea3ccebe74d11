import re

import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.train import optimizer, state

PARAMS = {"levels_0": {"position_embedding": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}


def adamw(**changes):
    return optimizer.AdamW(
        **{"peak_learning_rate": 0.1, "warmup_epochs": 1.0, "weight_decay": 0.5, **changes}
    )


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    schedule = adamw().schedule(num_steps=110, steps_per_epoch=10)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10)], [0, 0.05, 0.1], rtol=1e-6)
    halfway = 10 + 50
    np.testing.assert_allclose(schedule(halfway), 0.05, rtol=1e-5)
    np.testing.assert_allclose(schedule(110), 0, atol=1e-8)


def test_weight_decay_spares_what_is_named_and_nothing_else():
    rule = adamw().build(lambda step: 0.1, ["*/position_embedding"])
    before = state.TrainState(jnp.zeros((), jnp.int32), PARAMS, rule.init(PARAMS))
    zeros = {"levels_0": {"position_embedding": jnp.zeros(3)}, "head": {"kernel": jnp.zeros(3)}}
    after, norms = before.updated(rule, zeros)
    # With gradients of zero, what is left is decay: 1 - learning rate x decay.
    np.testing.assert_allclose(after.params["head"]["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(after.params["levels_0"]["position_embedding"], 1)
    assert int(after.step) == 1
    assert float(norms["train/gradient_norm"]) == 0
    np.testing.assert_allclose(norms["train/update_norm"], 0.05 * 3**0.5, rtol=1e-6)


def test_a_name_that_no_parameter_has_is_refused():
    rule = adamw().build(lambda step: 0.1, ["*/pos_embed"])
    text = "'*/pos_embed' names parameters without weight decay, but no parameter fits it"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        rule.init(PARAMS)


def test_a_warm_up_as_long_as_the_run_is_refused():
    text = "AdamW.warmup_epochs is 1.0, which is 10 steps of a run of 10; lower it or raise"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        adamw().schedule(num_steps=10, steps_per_epoch=10)
