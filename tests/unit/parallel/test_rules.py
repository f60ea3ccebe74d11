import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from support import layouts

from nest_dist.base import failures
from nest_dist.model import axes
from nest_dist.parallel import mesh, rules

KERNEL = {"levels_0": {"layers_0": {"attention": {"query": {"kernel": 0}}}}}


@pytest.fixture(scope="module")
def layout():
    """Rules over a mesh of 48 devices that this machine need not have."""
    return rules.Layout(AbstractMesh((2, 4, 3, 2), mesh.AXES), layouts.shipped_rules())


def test_each_mesh_axis_serves_the_first_dimension_that_asks(layout):
    places = layout.places(("batch", "rows", None, "embed"), (16, 3, 3, 8))
    assert places == [("data", "fsdp"), ("rows",), (), ()]
    assert layout.places(("embed", "heads"), (8, 4)) == [("fsdp",), ("tensor",)]
    assert layout.spec(("embed", None), (8, 3)) == PartitionSpec("fsdp", None)


def test_a_dimension_that_does_not_divide_stays_whole(layout):
    assert layout.places(("embed", "heads"), (6, 4)) == [(), ("tensor",)]


def test_a_batch_is_cut_over_both_of_its_axes(layout):
    assert layout.shards("batch") == 8


def test_an_axis_of_one_device_cuts_nothing():
    lay = layouts.layout(data=2)
    assert lay.places(("batch", "rows", "heads"), (4, 4, 4)) == [("data",), (), ()]


def test_moments_and_averages_lie_where_their_parameter_lies():
    lay = layouts.layout(fsdp=4, tensor=2)
    tree = jax.tree.map(lambda _: jax.ShapeDtypeStruct((8, 4, 2), jnp.float32), KERNEL)
    state = {
        "params": tree,
        "optimizer": ({"mu": tree},),
        "ema": tree,
        "step": jax.ShapeDtypeStruct((), int),
    }
    shardings = rules.tree_shardings(lay, state, axes.PARAMETER_AXES)
    found = [
        leaf for part in ("params", "optimizer", "ema") for leaf in jax.tree.leaves(shardings[part])
    ]
    assert len(found) == 3
    assert {sharding.spec for sharding in found} == {PartitionSpec("fsdp", "tensor", None)}
    assert shardings["step"].spec == PartitionSpec()


def test_a_parameter_without_a_rule_is_named():
    tree = {"mystery": {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    text = "parameter mystery/kernel fits 0 sharding rules (none)"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        rules.tree_shardings(layouts.layout(fsdp=2), tree, axes.PARAMETER_AXES)


def test_without_an_active_layout_nothing_is_constrained():
    x = jnp.ones((4, 2))
    assert rules.constrain(x, "batch", None) is x
    assert rules.gathered(x, ("embed", None)) is x


def test_a_gathered_parameter_is_whole_and_its_gradient_is_stored_in_parts():
    lay = layouts.layout(fsdp=4)
    stored = lay.sharding(("embed", None), (8, 2))
    kernel = jax.device_put(jnp.arange(16.0).reshape(8, 2), stored)

    @jax.jit
    def both(kernel):
        with lay.active():
            whole, pull = jax.vjp(lambda k: rules.gathered(k, ("embed", None)), kernel)
            return whole, *pull(2 * whole)

    whole, gradient = both(kernel)
    assert whole.sharding.is_fully_replicated
    assert gradient.sharding.is_equivalent_to(stored, 2)
    assert gradient.tolist() == (2 * kernel).tolist()
