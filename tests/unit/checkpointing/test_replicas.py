"""Replicas of parameters that differ in one bit are found, and the device is named."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.base import failures
from nest_dist.checkpointing import replicas

LEAVES = {
    "kernel": np.arange(24, dtype=np.float32).reshape(4, 6),
    "bias": np.ones(6, np.float32),
    "mask": np.array([True, False]),
    "half": np.arange(3).astype(jax.numpy.bfloat16),
    "scalar": np.float32(7),
}


def placed(flipped=(), sharded=False, devices=4):
    """The leaves on devices; on those `flipped` the last bit of one element differs."""
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "fsdp"))
    tree = {}
    for name, leaf in LEAVES.items():
        spec = PartitionSpec("fsdp") if sharded and name == "kernel" else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        arrays = []
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
            part = np.array(leaf[index])
            if name == "kernel" and device.id in flipped:
                part.view(np.uint32)[1, 3] ^= 1
            arrays.append(jax.device_put(part, device))
        tree[name] = jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)
    return {"layer": tree}


@pytest.mark.parametrize("sharded", [False, True])
def test_equal_replicas_are_equal(sharded):
    replicas.require_equal(placed(sharded=sharded), 7)
    sums = replicas.local_sums(placed(sharded=sharded))
    assert len({part for _, part, _ in sums}) == (2 if sharded else 1)


@pytest.mark.parametrize("device", range(4))
def test_a_flipped_bit_names_its_device(device):
    text = rf"^the parameters on device {device} of process 0 differ from those of other devices "
    with pytest.raises(replicas.Differ, match=text + "after step 7: ") as refused:
        replicas.require_equal(placed(flipped=[device]), 7)
    assert refused.value.exit_code == failures.PEER_LOST


def test_where_two_alone_hold_a_part_both_are_named():
    sums = replicas.local_sums(placed(flipped=[3], sharded=True))
    assert replicas.differing([sums]) == ["device 1 of process 0", "device 3 of process 0"]


def test_two_results_of_a_step_name_the_devices_that_gave_them():
    first, second = (replicas.local_sums(placed(flipped=it)) for it in ((), [2]))
    replicas.require_same(first, replicas.local_sums(placed()), 5)
    text = "^step 5, done twice, gave two results on device 2 of process 0: memory or a computation"
    with pytest.raises(replicas.Differ, match=text):
        replicas.require_same(first, second, 5)


def test_elements_that_change_places_are_noticed():
    one, two = placed(devices=2), placed(devices=2)
    swapped = one["layer"]["kernel"][::-1]
    one["layer"]["kernel"] = jax.device_put(swapped, two["layer"]["kernel"].sharding)
    ((_, part, found), _), ((_, other_part, other), _) = map(replicas.local_sums, (one, two))
    assert part == other_part
    assert found != other


def test_every_process_counts():
    ours = [("device 0 of process 0", "part", 1)]
    theirs = [("device 2048 of process 1", "part", 1)]
    odd = [("device 4096 of process 2", "part", 2)]
    assert replicas.differing([ours, theirs]) == []
    assert replicas.differing([ours, theirs, odd]) == ["device 4096 of process 2"]
