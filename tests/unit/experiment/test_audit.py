import dataclasses
import re

import jax
import numpy as np
import pytest
from support import changing, family, layouts, meshes
from support.refusals import refusal

from nest_dist.base import tree_paths
from nest_dist.experiment import audit
from nest_dist.model import parameters
from nest_dist.sharding import rules
from nest_dist.train import parameter_rules


def entries(model, lay, parameter_axes=None, not_decayed=parameters.NO_WEIGHT_DECAY, **own):
    shapes = family.shapes(model)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        rules.tree_shardings(lay, shapes, parameters.PARAMETER_AXES),
    )
    known = parameters.of_model(model.num_hierarchies, model.num_classes)
    treatments = parameter_rules.ParameterRules(**own).build(not_decayed, model.block_repeats)
    return audit.entries(lay, placed, parameter_axes or known, treatments)


@pytest.mark.parametrize("name", [*family.PUBLISHED, "headless", "one level"])
def test_each_parameter_is_listed_once_with_its_one_rule(name):
    if name in family.PUBLISHED:
        model = family.published(name)
    else:
        changes = {"num_classes": 0} if name == "headless" else {}
        levels = {"num_hierarchies": 1, "block_repeats": (1,)} if name == "one level" else {}
        model = family.small("multi_head", **changes, **levels)
    found = entries(model, layouts.layout(fsdp=8))
    assert [entry.name for entry in found] == list(tree_paths.flatten(family.shapes(model)))
    spared = {entry.name for entry in found if not entry.treatment.decay}
    assert spared == {entry.name for entry in found if "position_embedding" in entry.name}
    assert len(spared) == model.num_hierarchies


def test_the_table_tells_shape_place_bytes_treatment_and_rule():
    own = {"layer_decay": 0.5, "frozen": ("levels_0/*",)}
    lay = layouts.layout(fsdp=4, tensor=2)
    table = audit.table(entries(family.published("nest_tiny"), lay, **own))
    lines = {line.split("  ")[0]: re.split(r"  +", line) for line in table.splitlines()}
    columns = ["parameter", "shape", "dtype", "mesh axes", "bytes a device"]
    assert lines["parameter"] == [*columns, "rate", "decay", "frozen", "rule"]
    name = "levels_2/layers_7/attention/query/kernel"
    assert lines[name] == [
        *(name, "384 x 12 x 32", "float32", "fsdp, tensor, -", f"{384 * 384 * 4 // 8:,}"),
        *("0.5", "1", "no", "*/attention/query/kernel"),
    ]
    name = "levels_1/position_embedding"
    assert lines[name][1] == "1 x 4 x 196 x 192"
    assert lines[name][5:8] == ["0.0004883", "0", "no"]  # as the layer before it
    assert lines["levels_0/layers_0/mlp/hidden/bias"][5:8] == ["-", "-", "yes"]
    assert lines["head/kernel"][5:8] == ["1", "1", "no"]
    assert table.splitlines()[-1].split()[:3] == ["209", "parameters", "17,057,608"]


def test_a_rule_without_a_parameter_is_named():
    model = family.small("multi_head")
    known = {**parameters.of_model(2, 5), "*/pos_embed": ("embed",)}
    text = "the sharding rule '*/pos_embed' fits no parameter; the names are like 'aggregations_0/"
    with refusal(text):
        entries(model, layouts.layout(data=2), known)


def test_a_misspelt_name_without_decay_is_refused():
    with refusal(
        "'*/pos_embed' names parameters with a weight decay of their own, but no parameter"
    ):
        entries(family.small("multi_head"), layouts.layout(data=2), None, ("*/pos_embed",))


def test_a_large_parameter_that_every_device_would_hold_whole_is_named():
    model = family.published("nest_tiny").clone(dim=100, heads=4)
    with refusal(
        "MeshShape.fsdp is 8, which does not divide 100 of levels_0/position_embedding, so "
        "every device would hold all of it; lower it to 4 and give the other devices to "
        "MeshShape.data."
    ):
        entries(model, layouts.layout(fsdp=8))
    entries(model, layouts.layout(data=2, fsdp=4))
    entries(model, layouts.layout(data=8))


@pytest.mark.medium
def test_eight_devices_hold_an_eighth_of_parameters_and_moments():
    model = family.published("nest_tiny")
    run = changing.changed(meshes.tiny(), {"model": model, "step.ema_decay": 0.99})

    def device_bytes(shape):
        # The data of the tiny run do not fit this model; nothing is asked of them here.
        small = meshes.built(shape)
        wired = dataclasses.replace(small, run=dataclasses.replace(run, mesh=small.run.mesh))
        zeros = {
            name: np.zeros(leaf.shape, np.float32)
            for name, leaf in tree_paths.flatten(wired.state_shapes.params).items()
        }
        state = wired.state_from(zeros)
        held = [0] * jax.device_count()
        for leaf in jax.tree.leaves(state):
            for shard in leaf.addressable_shards:
                held[shard.device.id] += shard.data.nbytes
        assert max(held) == audit.device_bytes(wired.state_shapes)
        return max(held)

    replicated = device_bytes({"data": 8})
    # Parameters, two moments and the average, in float32.
    assert replicated >= 4 * 4 * family.PUBLISHED["nest_tiny"]
    assert device_bytes({"fsdp": 8}) <= replicated / 7
