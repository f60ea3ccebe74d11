import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from nest_dist.base import failures
from nest_dist.model import axes
from nest_dist.parallel import mesh, rules


@pytest.fixture(scope="module")
def layout():
    """Rules over a mesh of 8 devices that this machine need not have."""
    return rules.Layout(AbstractMesh((2, 4), ("data", "fsdp")))


def test_each_mesh_axis_serves_the_first_dimension_that_asks(layout):
    assert layout.spec(("batch", None, "embed"), (16, 3, 8)) == PartitionSpec(
        ("data", "fsdp"), None, None
    )
    assert layout.spec(("embed", "heads"), (8, 4)) == PartitionSpec(("fsdp",), None)


def test_a_dimension_that_does_not_divide_stays_whole(layout):
    assert layout.spec(("embed",), (6,)) == PartitionSpec(None)


def test_batches_are_cut_over_both_axes(layout):
    assert layout.batch_shards() == 8


def test_moments_lie_where_their_parameter_lies():
    layout = rules.Layout(mesh.MeshShape(data=1, fsdp=-1).build())
    kernel = jax.ShapeDtypeStruct((8, 4, 2), jnp.float32)
    tree = {"levels_0": {"layers_0": {"attention": {"query": {"kernel": kernel}}}}}
    state = {"params": tree, "optimizer": ({"mu": tree},), "step": jax.ShapeDtypeStruct((), int)}
    shardings = rules.tree_shardings(layout, state, axes.PARAMETER_AXES)
    found = jax.tree.leaves(shardings["params"]) + jax.tree.leaves(shardings["optimizer"])
    assert {sharding.spec for sharding in found} == {PartitionSpec(("fsdp",), None, None)}
    assert shardings["step"].spec == PartitionSpec()


def test_a_parameter_without_a_rule_is_named():
    layout = rules.Layout(mesh.MeshShape(data=-1, fsdp=1).build())
    tree = {"mystery": {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    text = "parameter mystery/kernel of shape (8,) fits 0 sharding rules (none)"
    with pytest.raises(failures.BadInput, match=re.escape(text)):
        rules.tree_shardings(layout, tree, axes.PARAMETER_AXES)


def test_without_an_active_layout_nothing_is_constrained():
    x = jnp.ones((4, 2))
    assert rules.constrain(x, "batch", None) is x
