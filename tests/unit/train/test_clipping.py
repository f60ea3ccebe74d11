"""Clipping against its definition in float64, over a sharded tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts
from support.refusals import refusal

from nest_dist.base import tree_paths
from nest_dist.model import parameters
from nest_dist.sharding import rules
from nest_dist.train import clipping

SHAPES = {
    "levels_0/layers_0/attention/query/kernel": (8, 2, 4),
    "levels_0/layers_0/attention/output/kernel": (2, 4, 8),
    "aggregations_0/convolution/kernel": (3, 3, 8, 8),
    "head/bias": (5,),
}
# The axes of the inputs of each output; a bias is one unit as a whole.
UNITS = {
    "levels_0/layers_0/attention/query/kernel": (0,),
    "levels_0/layers_0/attention/output/kernel": (0, 1),
    "aggregations_0/convolution/kernel": (0, 1, 2),
    "head/bias": (0,),
}


def flat(seed, size):
    rng = np.random.default_rng(seed)
    return {name: size * rng.normal(size=shape) for name, shape in SHAPES.items()}


PARAMS, GRADS = flat(0, 1.0), flat(1, 0.3)
PARAMS["head/bias"] *= 0  # counts as the smallest norm


def clipped(rule):
    """By a jitted rule, over two axes of a mesh."""
    context = layouts.layout(fsdp=4, tensor=2)

    def placed(values):
        tree = tree_paths.unflatten({name: jnp.float32(it) for name, it in values.items()})
        return jax.device_put(tree, rules.tree_shardings(context, tree, parameters.PARAMETER_AXES))

    grads = placed(GRADS)
    assert len(grads["aggregations_0"]["convolution"]["kernel"].sharding.device_set) == 8
    return tree_paths.flatten(jax.device_get(jax.jit(rule)(grads, placed(PARAMS))))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], 1e-5, 1e-8, err_msg=name)


@pytest.mark.parametrize("limit", [0.1, 2.0, 1e3])
def test_the_global_norm_is_at_most_the_limit(limit):
    norm = np.sqrt(sum(np.sum(grad**2) for grad in GRADS.values()))
    scale = min(1.0, limit / norm)
    found = clipped(clipping.ClipByGlobalNorm(limit))
    assert_equal(found, {name: scale * grad for name, grad in GRADS.items()})


def test_no_element_lies_beyond_the_limit():
    expected = {name: np.clip(grad, -0.2, 0.2) for name, grad in GRADS.items()}
    assert_equal(clipped(clipping.ClipByValue(0.2)), expected)


def test_the_gradient_of_a_unit_is_at_most_a_share_of_its_parameters():
    expected, shrunk = {}, 0
    for name, grad in GRADS.items():

        def norm(x, axes=UNITS[name]):
            return np.sqrt(np.sum(x**2, axis=axes, keepdims=True))

        limit = 0.3 * np.maximum(norm(PARAMS[name]), 1e-3)
        expected[name] = np.where(norm(grad) > limit, grad * limit / norm(grad), grad)
        shrunk += np.sum(norm(grad) > limit)
    assert 1 < shrunk < 20  # some of both
    assert_equal(clipped(clipping.AdaptiveClipping(0.3)), expected)


def test_zeros_stay_and_what_is_not_finite_stays_so():
    for rule in (clipping.ClipByGlobalNorm(1.0), clipping.AdaptiveClipping(0.1)):
        zeros = {"head": {"bias": jnp.zeros(3)}}
        np.testing.assert_array_equal(rule(zeros, zeros)["head"]["bias"], 0)
        broken = {"head": {"bias": jnp.array([1, jnp.nan, jnp.inf])}}
        assert not np.isfinite(rule(broken, zeros)["head"]["bias"]).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: clipping.ClipByGlobalNorm(0), "ClipByGlobalNorm.limit is 0; it must be above 0"),
        (lambda: clipping.ClipByValue(-1.0), "ClipByValue.limit is -1.0; it must be above 0"),
        (lambda: clipping.AdaptiveClipping(float("nan")), "AdaptiveClipping.share is nan; it must"),
    ],
)
def test_a_limit_that_leaves_nothing_is_refused(make, text):
    with refusal(text):
        make()
