"""The mean whose bits do not depend on the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import changing, layouts, meshes

from nest_dist.base import failures
from nest_dist.sharding import ordered_mean

SHARDS, B = 8, 32
RNG = np.random.default_rng(0)
BATCH = {"x": jnp.asarray(RNG.normal(size=(B, 64)), jnp.float32), "row": jnp.arange(B)}
WEIGHTS = jnp.asarray(RNG.normal(size=(64, 64)), jnp.float32)


def loss(weights, batch):
    hidden = jax.nn.softmax(batch["x"] @ weights)
    return (hidden * jnp.sin(batch["row"])[:, None]).sum(axis=1).mean()


def mean(devices):
    context = layouts.layout(data=devices)
    reduction = ordered_mean.OrderedMean(context, SHARDS)
    placed = {
        name: jax.device_put(
            leaf, context.sharding(("batch",) + (None,) * (leaf.ndim - 1), leaf.shape)
        )
        for name, leaf in BATCH.items()
    }
    function = jax.value_and_grad(loss)
    value = jax.jit(lambda w, batch: reduction.mean(function, (w,), batch))(WEIGHTS, placed)
    return jax.device_get(value)


def test_it_is_the_mean_and_its_bits_are_those_of_every_number_of_devices():
    first = mean(2)
    plain = jax.jit(jax.value_and_grad(loss))(WEIGHTS, BATCH)
    # Means over 32 in another order: a few of the last of 24 bits.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), first, plain)
    for devices in (4, 8):
        jax.tree.map(np.testing.assert_array_equal, mean(devices), first)


@pytest.mark.slow
def test_five_steps_of_everything_random_give_the_same_bits_on_two_and_on_eight_devices():
    # Half of the shards on each device, or one; each in two microbatches.
    two, eight = (meshes.reproducible(devices, microbatches=2) for devices in (2, 8))
    jax.tree.map(np.testing.assert_array_equal, eight, two)


@pytest.mark.parametrize(
    ("shape", "shards", "text"),
    [
        ({"data": 1}, 8, "is True on 1 devices; it needs a power of two, at least 2: use as many"),
        ({"data": 6}, 8, "is True on 6 devices; it needs a power of two, at least 2: use as many"),
        ({"fsdp": 2}, 8, "on a mesh with fsdp=2; it works along data alone: set MeshShape.data"),
        ({"data": 2, "tensor": 2, "rows": 2}, 8, "on a mesh with rows=2, tensor=2; it works"),
        ({"data": 2}, 6, "reduction_shards is 6; it must be a power of two: set it to 4 or 8"),
        ({"data": 4}, 2, r"reduction_shards is 2, not a multiple of the number of devices \(4\)"),
    ],
)
def test_what_it_does_not_cover_is_refused(shape, shards, text):
    with pytest.raises(failures.BadInput, match=text):
        ordered_mean.OrderedMean(layouts.layout(**shape), shards)


def test_a_batch_that_its_shards_do_not_divide_is_refused():
    changes = {"step.reproducible_reduction": True, "global_batch": 24}
    base = changing.changed(meshes.tiny(), changes)
    text = r"24, not a multiple of 8 Step.reduction_shards x 1 microbatches x 2 of a mixing group"
    with pytest.raises(failures.BadInput, match=text):
        meshes.built({"data": 2}, base=base).train_step()
