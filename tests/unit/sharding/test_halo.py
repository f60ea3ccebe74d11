"""Windows over rows that are sharded give the same as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist.model import aggregation, patching
from nest_dist.rehearsal import collectives, estimates

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 4, 3))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
BIAS = jnp.arange(5.0)


def convolved(image, kernel, bias):
    return aggregation.convolve(image, kernel, bias, "rows")


def pooled(image, *_):
    return aggregation.max_pool(image, "rows")


def with_gradients(function, context=None):
    """The result, and the gradients of a weighted sum of it by every input."""

    def run(*inputs):
        def total(*inputs):
            out = function(*inputs)
            # Each element has another weight, so a misplaced one changes the sum.
            return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)

    if context is None:
        return jax.jit(run)(IMAGE, KERNEL, BIAS)
    image = jax.device_put(IMAGE, context.sharding(("batch", "rows", None, None), IMAGE.shape))
    with context.active():
        return jax.jit(run)(image, KERNEL, BIAS)


@pytest.mark.parametrize("function", [convolved, pooled])
@pytest.mark.parametrize("shape", [{"rows": 2}, {"rows": 4}, {"rows": 8}, {"data": 2, "rows": 4}])
def test_forward_and_gradient_are_those_of_one_device(function, shape):
    alone, shared = with_gradients(function), with_gradients(function, layouts.layout(**shape))
    for expected, actual in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        # Sums of up to 2 x 16 x 4 x 27 float32 products, in another order.
        tolerance = 2e-6 * np.max(np.abs(expected)) + 1e-6
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("function", [convolved, pooled])
def test_outside_of_the_image_is_the_border_and_not_the_opposite_edge(function):
    # Were the first device to receive the rows of the last one, or zeros, minus 5 would not win.
    low = jnp.full((1, 8, 4, 3), -5.0)
    context = layouts.layout(rows=4)
    expected = jax.jit(function)(low, KERNEL, BIAS)
    with context.active():
        actual = jax.jit(function)(low, KERNEL, BIAS)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    if function is pooled:
        np.testing.assert_array_equal(actual, -5)


def test_a_device_receives_one_row_from_each_neighbour_and_nothing_else():
    context = layouts.layout(rows=4)
    image = jax.device_put(IMAGE, context.sharding(("batch", "rows", None, None), IMAGE.shape))

    def received(function):
        with context.active():
            text = jax.jit(function).lower(image, KERNEL, BIAS).compile().as_text()
        exchanges = collectives.read(estimates.read(text), context.mesh)
        return [(exchange.kind, exchange.shapes) for exchange in exchanges]

    row = ("collective-permute", ("f32[2,1,4,3]",))
    assert received(convolved) == [row, row]
    assert received(pooled) == [row]


@pytest.mark.parametrize(
    ("rows", "block_side", "shape"),
    [
        (8, 2, {"rows": 2}),
        (8, 1, {"rows": 4}),  # ends as one row of blocks on each
        (4, 2, {"rows": 4}),  # ends as half a row of blocks on each: is gathered after the pool
        (4, 1, {"rows": 4}),  # the pool's pairs of rows lie on two devices: is gathered before
        (2, 3, {"rows": 4}),  # fewer rows of blocks than devices
        (2, 3, {"rows": 2}),  # an odd number of rows on each
        (8, 2, {"data": 2, "rows": 2, "tensor": 2}),
    ],
)
def test_an_aggregation_is_the_same_however_its_rows_are_sharded(rows, block_side, shape):
    layer = aggregation.Aggregation((rows, 4), width=8, compute_dtype="float32")
    image = jax.random.normal(jax.random.key(2), (2, rows * block_side, 4 * block_side, 4))
    blocks = patching.to_blocks(image, block_side)
    rng = np.random.default_rng(4)
    variables = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(layer.init, jax.random.key(3), blocks),
    )
    context = layouts.layout(**shape)

    def loss(variables, blocks):
        out = layer.apply(variables, blocks)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, blocks)
    with context.active():
        actual = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, blocks)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.max(np.abs(one)) + 1e-6)
