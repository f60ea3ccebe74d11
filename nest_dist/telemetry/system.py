"""System metrics: speed of a device, utilisation, memory."""

import math
import os
import pathlib
from collections.abc import Mapping

import jax

from nest_dist.base import chips


def metrics(speeds: Mapping[str, float], flops_per_image: float) -> dict[str, float]:
    """The speed of one device, its utilisation if its peak is known, and memory in use.

    Memory is in bytes: of this process's fullest device, and of the process itself.
    """
    speed = speeds["speed/images_per_second"] / jax.device_count()
    derived = {"speed/images_per_second_per_device": speed}
    if chip := chips.of_kind(jax.devices()[0].device_kind):
        derived["speed/mfu"] = speed * flops_per_image / chip.bfloat16_flops
    derived["memory/device_bytes"] = float(max(map(_device_bytes, jax.local_devices())))
    status = pathlib.Path("/proc/self/statm")
    if status.exists():  # Linux
        pages = float(status.read_text().split()[1])
        derived["memory/host_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return derived


def _device_bytes(device: jax.Device) -> int:
    if stats := device.memory_stats():
        return stats["bytes_in_use"]
    # A CPU device counts no bytes; its arrays do.
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array in jax.live_arrays()
        if device in array.sharding.device_set
    )
