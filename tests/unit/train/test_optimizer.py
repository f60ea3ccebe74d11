"""The first steps of each optimizer against its formula in float64, rules by name included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import optimizers as formulas

from nest_dist.base import tree_paths
from nest_dist.train import optimizer, parameter_rules

STEPS = 4
QUERY = "levels_0/layers_0/attention/query/kernel"
SHAPES = {
    QUERY: (6, 2, 3),
    "levels_0/layers_0/attention/output/kernel": (2, 3, 6),
    "levels_0/layers_0/mlp/hidden/kernel": (6, 8),
    "levels_0/position_embedding": (1, 2, 2, 6),
    "head/kernel": (6, 5),
    "head/bias": (5,),
}
# What they amount to by hand: multiplier of the rate, and factor of weight decay.
RULES = parameter_rules.ParameterRules(
    layer_decay=0.5,
    learning_rates=(("head/*", 2.0), ("head/bias", 3.0)),
    weight_decays=(("head/bias", 0.5),),
).build(("*/position_embedding",), (1,))
BY_HAND = {name: (0.5, 1.0) for name in SHAPES if "/layers_0/" in name} | {
    "levels_0/position_embedding": (0.25, 0.0),
    "head/kernel": (2.0, 1.0),
    "head/bias": (3.0, 0.5),
}


def values(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


FIRST, GRADS = values(0), [values(seed) for seed in range(1, STEPS + 1)]


def rate(step):
    return 0.02 * (1 + step)


def on_device(flat):
    return tree_paths.unflatten({name: jnp.float32(value) for name, value in flat.items()})


def stepped(configured):
    """The parameters after all steps, flat."""
    rule = RULES.around(configured.build(rate, RULES.decay), clipping=None)
    params = on_device(FIRST)
    state, update = rule.init(params), jax.jit(rule.update)
    for grads in GRADS:
        updates, state = update(on_device(grads), state, params)
        params = optax.apply_updates(params, updates)
    return tree_paths.flatten(params)


def muon(name, param, grads, rates, decay):
    if name.startswith("levels_0/layers_0"):
        return formulas.muon(
            param, grads, rates, decay, inputs=1 if name == QUERY else param.ndim - 1
        )
    return formulas.adamw(param, grads, rates, decay)


def adafactor(name, param, grads, rates, decay):
    # Both sides of the two longest must reach 6.
    factored = {"levels_0/layers_0/mlp/hidden/kernel": (0, 1)}.get(name)
    return formulas.adafactor(param, grads, rates, decay, factored)


def plain(formula, **more):
    return lambda name, *values: formula(*values, **more)


def coupled(name, param, grads, rates, decay):
    return formulas.adamw(param, grads, rates, 0.0, coupled=decay)


CASES = {
    "AdamW": (optimizer.AdamW(1.0, 0.3), plain(formulas.adamw)),
    "Adam": (optimizer.Adam(1.0, 0.3), coupled),
    "SGD": (
        optimizer.SGD(1.0, 0.3, momentum=0.9),
        plain(formulas.sgd, momentum=0.9, nesterov=False),
    ),
    "SGD without momentum": (
        optimizer.SGD(1.0, 0.3, momentum=0.0),
        plain(formulas.sgd, momentum=0.0, nesterov=False),
    ),
    "SGD with Nesterov's": (
        optimizer.SGD(1.0, 0.3, momentum=0.8, nesterov=True),
        plain(formulas.sgd, momentum=0.8, nesterov=True),
    ),
    "Lion": (optimizer.Lion(1.0, 0.3), plain(formulas.lion)),
    "LAMB": (optimizer.LAMB(1.0, 0.3), plain(formulas.adamw, eps=1e-6, trust=True)),
    "Adafactor": (optimizer.Adafactor(1.0, 0.3, smallest_factored=6), adafactor),
    "Muon": (optimizer.Muon(1.0, 0.3), muon),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_steps_are_those_of_the_formula(case):
    configured, formula = CASES[case]
    found = stepped(configured)
    for name, (multiplier, factor) in BY_HAND.items():
        rates = [multiplier * rate(step) for step in range(STEPS)]
        expected = formula(name, FIRST[name], [grads[name] for grads in GRADS], rates, 0.3 * factor)
        # A float32 has 24 bits; Muon's iteration multiplies small singular values by up to 3.4**5.
        tolerance = 2e-3 if case == "Muon" else 2e-5
        np.testing.assert_allclose(found[name], expected, tolerance, tolerance, err_msg=name)


def test_adamw_is_that_of_optax_to_the_bit():
    ours = optimizer.AdamW(1.0, 0.3).build(rate, lambda name: 1.0)
    theirs = optax.adamw(rate, weight_decay=0.3)
    params = on_device(FIRST)
    states = ours.init(params), theirs.init(params)
    names = [list(tree_paths.flatten(state)) for state in states]
    assert names[0] == names[1]
    updates = [
        jax.jit(rule.update)(on_device(GRADS[0]), state, params)[0]
        for rule, state in zip((ours, theirs), states, strict=True)
    ]
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_an_own_transformation_of_optax_is_used_as_it_is():
    own = optimizer.Optax(1.0, functools.partial(optax.rmsprop, momentum=0.5))
    params, grads = on_device(FIRST), on_device(GRADS[0])
    expected = optax.rmsprop(rate, momentum=0.5)
    updates, _ = expected.update(grads, expected.init(params), params)
    rule = own.build(rate, lambda name: 1.0)
    jax.tree.map(
        np.testing.assert_array_equal, rule.update(grads, rule.init(params), params)[0], updates
    )
