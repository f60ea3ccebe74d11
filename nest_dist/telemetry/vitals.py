"""Numbers about the machine that go with a speed: utilisation and memory."""

import math
import os
import pathlib
from collections.abc import Mapping

import jax

from nest_dist.parallel import chips


def beside(metrics: Mapping[str, float], flops_per_image: float) -> dict[str, float]:
    """What follows from `speed/images_per_second`, and the memory in use on this host.

    Args:
        metrics: of a window of steps.
        flops_per_image: floating-point operations that training needs for one image.
    Returns:
        Speed of one device, utilisation where the peak of the devices is known, and bytes in use
        on the fullest device of this process and by the process itself.
    """
    speed = metrics["speed/images_per_second"] / jax.device_count()
    found = {"speed/images_per_second_per_device": speed}
    if chip := chips.of_kind(jax.devices()[0].device_kind):
        found["speed/mfu"] = speed * flops_per_image / chip.bfloat16_flops
    found["memory/device_bytes"] = float(max(map(_device_bytes, jax.local_devices())))
    status = pathlib.Path("/proc/self/statm")
    if status.exists():  # Linux
        found["memory/host_bytes"] = float(status.read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    return found


def _device_bytes(device: jax.Device) -> int:
    if stats := device.memory_stats():
        return stats["bytes_in_use"]
    # A CPU device keeps no account; arrays are what there is of it.
    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array in jax.live_arrays()
        if device in array.sharding.device_set
    )
