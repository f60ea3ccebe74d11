import re

import jax
import pytest

from nest_dist.base import failures
from nest_dist.parallel import mesh


def refusal(text):
    return pytest.raises(failures.BadInput, match=re.escape(text))


def test_minus_one_takes_the_devices_that_remain():
    assert mesh.MeshShape(data=-1, fsdp=2).sizes(8) == {"data": 4, "fsdp": 2}
    assert mesh.MeshShape(data=1, fsdp=-1).sizes(8) == {"data": 1, "fsdp": 8}
    assert mesh.MeshShape(data=-1, fsdp=1).sizes(1) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("shape", [(3, 1), (-1, 3), (2, 2), (16, 1)])
def test_a_mesh_that_is_not_all_devices_is_refused(shape):
    with refusal("does not divide 8 devices into a whole mesh; set one axis to -1"):
        mesh.MeshShape(*shape).sizes(8)


def test_only_one_axis_takes_the_rest():
    with refusal("MeshShape has -1 for data and fsdp; at most one axis may take the rest."):
        mesh.MeshShape(data=-1, fsdp=-1)


def test_the_mesh_has_the_devices_of_this_machine():
    built = mesh.MeshShape(data=-1, fsdp=1).build()
    assert dict(built.shape) == {"data": jax.device_count(), "fsdp": 1}
