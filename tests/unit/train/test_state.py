import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.train import optimizer, state

PARAMS = {"levels_0": {"position_embedding": jnp.ones(3)}, "head": {"kernel": jnp.ones(3)}}
RULE = optimizer.AdamW(peak_learning_rate=0.1, warmup_epochs=0.0).build(
    lambda step: 0.1, ["*/position_embedding"]
)


def test_the_moving_average_follows_the_parameters_and_is_what_is_evaluated():
    current = state.first(RULE, True, PARAMS)
    expected, decays = 1.0, []
    for step in range(100):
        current, _ = current.updated(RULE, jax.tree.map(jnp.ones_like, PARAMS), ema_decay=0.9)
        # At first it forgets faster, or the first values would stay in it for long.
        decays.append(min(0.9, (1 + step) / (10 + step)))
        kernel = float(current.params["head"]["kernel"][0])
        expected = decays[-1] * expected + (1 - decays[-1]) * kernel
    assert decays[0] == 0.1
    assert decays[-1] == 0.9
    np.testing.assert_allclose(current.evaluated["head"]["kernel"], expected, rtol=1e-5)
    assert abs(expected - kernel) > 0.1


def test_without_an_average_the_parameters_are_evaluated():
    current, _ = state.first(RULE, False, PARAMS).updated(RULE, PARAMS)
    assert current.evaluated is current.params
    assert current.ema is None
