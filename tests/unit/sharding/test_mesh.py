import types

import jax
import pytest
from support.refusals import refusal

from nest_dist.sharding import mesh


def sizes(num_devices, **shape):
    resolved = mesh.MeshShape(**{"data": 1, "fsdp": 1, **shape}).sizes(num_devices)
    return {name: size for name, size in resolved.items() if size != 1}


def test_minus_one_takes_the_devices_that_remain():
    assert sizes(8, data=-1, fsdp=2) == {"data": 4, "fsdp": 2}
    assert sizes(8, fsdp=-1) == {"fsdp": 8}
    assert sizes(8, rows=-1, tensor=2) == {"rows": 4, "tensor": 2}
    assert sizes(8, data=2, slices=-1) == {"data": 2, "slices": 4}
    assert sizes(1, data=-1) == {}


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"data": 3}, "data=3"),
        ({"data": -1, "fsdp": 3}, "data=-1 x fsdp=3"),
        ({"data": 2, "tensor": 2}, "data=2 x tensor=2"),
        ({"rows": 16}, "rows=16"),
        ({}, "of 1 device"),
    ],
)
def test_a_mesh_that_is_not_all_devices_is_refused(shape, named):
    with refusal(f"MeshShape {named} does not divide 8 devices into a whole mesh; set one to -1"):
        sizes(8, **shape)


def test_only_one_axis_takes_the_rest():
    with refusal("MeshShape has -1 for data and rows; at most one may take the rest."):
        mesh.MeshShape(data=-1, fsdp=1, rows=-1)


def test_slices_extend_the_data_axis_alone():
    built = mesh.MeshShape(data=1, fsdp=2, rows=2, slices=2).build(jax.devices()[:8])
    assert dict(built.shape) == {"data": 2, "fsdp": 2, "rows": 2, "tensor": 1}
    assert built.devices.ravel().tolist() == jax.devices()[:8]


def tpus(num_slices):
    """Stand-ins for the devices of TPU slices: four in a square for each."""
    return [
        types.SimpleNamespace(
            id=4 * slice_index + index,
            slice_index=slice_index,
            coords=(index % 2, index // 2, 0),
            core_on_chip=0,
            process_index=slice_index,
            platform="tpu",
            device_kind="TPU v4",
        )
        for slice_index in range(num_slices)
        for index in range(4)
    ]


def test_a_hybrid_mesh_crosses_slices_along_the_data_axis_alone(monkeypatch):
    monkeypatch.setattr(mesh, "Mesh", lambda devices, *_, **__: devices)  # JAX's needs real devices
    arranged = mesh.MeshShape(data=1, fsdp=2, tensor=2, slices=2).build(tpus(2)[::-1])
    assert arranged.shape == (2, 2, 1, 2)
    for index, devices in enumerate(arranged):
        assert {device.slice_index for device in devices.ravel()} == {index}


@pytest.mark.parametrize("slices", [1, 4])
def test_a_number_of_slices_that_the_devices_do_not_have_is_refused(slices):
    with refusal(f"MeshShape.slices is {slices}, the devices lie in 2; set it to 2."):
        mesh.MeshShape(data=-1, fsdp=1, slices=slices).build(tpus(2))


def test_the_mesh_has_the_devices_of_this_machine():
    built = mesh.MeshShape(data=-1, fsdp=1).build()
    assert dict(built.shape) == {"data": jax.device_count(), "fsdp": 1, "rows": 1, "tensor": 1}
