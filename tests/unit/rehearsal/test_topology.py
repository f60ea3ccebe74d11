import importlib.util
import math
import signal
import subprocess
import sys

import pytest
from support.refusals import refusal

from nest_dist.base import chips
from nest_dist.rehearsal import topology
from nest_dist.sharding import mesh


@pytest.mark.parametrize("generation", topology.KNOWN)
def test_the_compiler_knows_each_topology_that_is_listed(generation):
    for shape in topology.KNOWN[generation]:
        devices = topology.devices(f"{generation}:{shape}")
        chip = chips.of_kind(devices[0].device_kind)
        assert chip.generation == generation
        assert len(devices) == chip.devices * math.prod(map(int, shape.split("x")))


def test_the_data_axis_crosses_the_slices_of_a_topology():
    devices = topology.devices("v5e:2x2", slices=2)
    built = mesh.MeshShape(data=1, fsdp=-1, slices=2).build(devices)
    assert dict(built.shape) == {"data": 2, "fsdp": 4, "rows": 1, "tensor": 1}
    for index, of_slice in enumerate(built.devices):
        assert {device.slice_index for device in of_slice.flat} == {index}


def test_slices_that_the_topology_does_not_have_are_refused():
    with refusal("MeshShape.slices is 2, the devices lie in 1; set it to 1."):
        mesh.MeshShape(data=-1, fsdp=1, slices=2).build(topology.devices("v5e:2x2"))
    with refusal("MeshShape.slices is 1, the devices lie in 2; set it to 2."):
        mesh.MeshShape(data=-1, fsdp=1).build(topology.devices("v5e:2x2", slices=2))
    with refusal("--slices is 0; it must be at least 1."):
        topology.devices("v5e:2x2", slices=0)


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "v5litepod-16"])
def test_an_unknown_topology_is_refused_with_the_known_ones(name):
    with refusal(f"--topology is '{name}', which the compiler does not know (INVALID_ARGUMENT: "):
        topology.devices(name)
    with refusal("; known are v2:2x2, 4x4, 4x8, 8x8, 8x16, 16x16; v3:2x2, "):
        topology.devices(name)


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with refusal(
        "--topology is 'v5e:2x2', but the compiler for TPUs is not installed; "
        "pip install 'nest_dist[rehearse]' (Linux on x86-64)."
    ):
        topology.devices("v5e:2x2")


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_compiler_leaves_signals_as_they_were(number):
    code = (
        "import os; from nest_dist.rehearsal import topology; topology.devices('v5e:2x2');"
        f"print('loaded', flush=True); os.kill(os.getpid(), {int(number)})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "loaded\n"
    assert run.returncode == -number
    assert "SIGTERM" not in run.stderr
