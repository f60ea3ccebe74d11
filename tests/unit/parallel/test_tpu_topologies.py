import importlib.util
import math
import re

import pytest

from nest_dist.base import failures
from nest_dist.parallel import chips, mesh, topologies


def refusal(text):
    return pytest.raises(failures.BadInput, match=re.escape(text))


@pytest.mark.parametrize("generation", topologies.KNOWN)
def test_the_compiler_knows_each_topology_that_is_listed(generation):
    for shape in topologies.KNOWN[generation]:
        found = topologies.devices(f"{generation}:{shape}")
        chip = chips.of_kind(found[0].device_kind)
        assert chip.generation == generation
        assert len(found) == chip.devices * math.prod(map(int, shape.split("x")))


def test_the_data_axis_crosses_the_slices_of_a_topology():
    found = topologies.devices("v5e:2x2", slices=2)
    built = mesh.MeshShape(data=1, fsdp=-1, slices=2).build(found)
    assert dict(built.shape) == {"data": 2, "fsdp": 4, "rows": 1, "tensor": 1}
    for index, devices in enumerate(built.devices):
        assert {device.slice_index for device in devices.flat} == {index}


def test_slices_that_the_topology_does_not_have_are_refused():
    with refusal("MeshShape.slices is 2, the devices lie in 1; set it to 1."):
        mesh.MeshShape(data=-1, fsdp=1, slices=2).build(topologies.devices("v5e:2x2"))
    with refusal("MeshShape.slices is 1, the devices lie in 2; set it to 2."):
        mesh.MeshShape(data=-1, fsdp=1).build(topologies.devices("v5e:2x2", slices=2))
    with refusal("--slices is 0; it must be at least 1."):
        topologies.devices("v5e:2x2", slices=0)


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "v5litepod-16"])
def test_an_unknown_topology_is_refused_with_the_known_ones(name):
    with refusal(f"--topology is '{name}', which the compiler does not know (INVALID_ARGUMENT: "):
        topologies.devices(name)
    with refusal("; known are v2:2x2, 4x4, 4x8, 8x8, 8x16, 16x16; v3:2x2, "):
        topologies.devices(name)


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with refusal(
        "--topology is 'v5e:2x2', but the compiler for TPUs is not installed; "
        "pip install 'nest_dist[rehearse]' (Linux on x86-64)."
    ):
        topologies.devices("v5e:2x2")
