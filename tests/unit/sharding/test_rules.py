import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from support import layouts
from support.refusals import refusal

from nest_dist.model import parameters
from nest_dist.sharding import mesh, rules

KERNEL = {"levels_0": {"layers_0": {"attention": {"query": {"kernel": 0}}}}}


@pytest.fixture(scope="module")
def context():
    """Rules over a mesh of 48 devices that this machine need not have."""
    return rules.ShardingContext(AbstractMesh((2, 4, 3, 2), mesh.AXES), layouts.shipped_rules())


def test_each_mesh_axis_serves_the_first_dimension_that_asks(context):
    mesh_axes = context.mesh_axes(("batch", "rows", None, "embed"), (16, 3, 3, 8))
    assert mesh_axes == [("data", "fsdp"), ("rows",), (), ()]
    assert context.mesh_axes(("embed", "heads"), (8, 4)) == [("fsdp",), ("tensor",)]
    assert context.sharding(("embed", None), (8, 3)).spec == PartitionSpec("fsdp", None)


def test_a_dimension_that_does_not_divide_is_not_sharded(context):
    assert context.mesh_axes(("embed", "heads"), (6, 4)) == [(), ("tensor",)]


def test_a_batch_is_sharded_along_both_of_its_axes(context):
    assert context.shards("batch") == 8


def test_an_axis_of_one_device_shards_nothing():
    context = layouts.layout(data=2)
    assert context.mesh_axes(("batch", "rows", "heads"), (4, 4, 4)) == [("data",), (), ()]


def test_moments_and_averages_are_sharded_as_their_parameter():
    context = layouts.layout(fsdp=4, tensor=2)
    tree = jax.tree.map(lambda _: jax.ShapeDtypeStruct((8, 4, 2), jnp.float32), KERNEL)
    state = {
        "params": tree,
        "optimizer": ({"mu": tree},),
        "ema": tree,
        "step": jax.ShapeDtypeStruct((), int),
    }
    shardings = rules.tree_shardings(context, state, parameters.PARAMETER_AXES)
    of_kernels = jax.tree.leaves([shardings[name] for name in ("params", "optimizer", "ema")])
    assert len(of_kernels) == 3
    assert {sharding.spec for sharding in of_kernels} == {PartitionSpec("fsdp", "tensor", None)}
    assert shardings["step"].spec == PartitionSpec()


def test_a_parameter_without_a_rule_is_named():
    tree = {"mystery": {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    text = "parameter mystery/kernel fits 0 sharding rules (none)"
    with refusal(text):
        rules.tree_shardings(layouts.layout(fsdp=2), tree, parameters.PARAMETER_AXES)


def test_without_an_active_context_nothing_is_constrained():
    x = jnp.ones((4, 2))
    assert rules.constrain(x, "batch", None) is x
    assert rules.gathered(x, ("embed", None)) is x


def test_a_gathered_parameter_is_replicated_and_its_gradient_sharded():
    context = layouts.layout(fsdp=4)
    stored = context.sharding(("embed", None), (8, 2))
    kernel = jax.device_put(jnp.arange(16.0).reshape(8, 2), stored)

    @jax.jit
    def both(kernel):
        with context.active():
            used, pull = jax.vjp(lambda k: rules.gathered(k, ("embed", None)), kernel)
            return used, *pull(2 * used)

    used, gradient = both(kernel)
    assert used.sharding.is_fully_replicated
    assert gradient.sharding.is_equivalent_to(stored, 2)
    assert gradient.tolist() == (2 * kernel).tolist()
