"""The mesh: how the devices of all processes are arranged into named axes."""

import dataclasses
import math
import typing
from collections.abc import Sequence

import gin
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from nest_dist.base import checks, failures

# The axis with the most communication last: its devices are the nearest to each other.
AXES = ("data", "fsdp", "rows", "tensor")


@gin.register
@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each axis; one of them may be -1, the devices that remain.

    Attributes:
        data: shards of the batch in one slice whose parameters are copies of each other.
        fsdp: shards of the batch that also share out parameters and optimizer state.
        tensor: devices that share out attention heads and the hidden channels of MLPs.
        rows: devices that share out each image, by rows of blocks.
        slices: groups of devices with a slow network between them. Each holds a copy of the
            parameters: on the mesh the axis `data` has `slices * data` devices.
    """

    data: int
    fsdp: int
    tensor: int = 1
    rows: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        checks.types(self)
        free = [name for name, size in vars(self).items() if size == -1]
        if len(free) > 1:
            raise failures.BadInput(
                f"MeshShape has -1 for {' and '.join(free)}; at most one may take the rest."
            )
        for name, size in vars(self).items():
            if size != -1 and size < 1:
                raise failures.BadInput(
                    f"MeshShape.{name} is {size}; it must be at least 1, or -1 for the rest."
                )

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The five numbers, without -1.

        Raises:
            BadInput: if they do not multiply to `num_devices`.
        """
        sizes = dict(vars(self))
        fixed = math.prod(size for size in sizes.values() if size != -1)
        rest, remainder = divmod(num_devices, fixed)
        free = [name for name, size in sizes.items() if size == -1]
        if remainder or (rest != 1 and not free):
            wanted = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
            raise failures.BadInput(
                f"MeshShape {wanted or 'of 1 device'} does not divide {num_devices} devices into "
                f"a whole mesh; set one to -1 and let the others divide {num_devices}."
            )
        for name in free:
            sizes[name] = rest
        return sizes

    def build(self, devices: Sequence[typing.Any] | None = None) -> Mesh:
        """The mesh over `devices`; without them, over all devices of all processes.

        Raises:
            BadInput: if the numbers do not fit the devices or the slices they lie in.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        slices = sizes["slices"]
        _require_slices(slices, devices)
        within = [sizes[name] for name in AXES]
        if slices > 1 and hasattr(devices[0], "slice_index"):
            between = [slices, *(1 for _ in AXES[1:])]
            arranged = mesh_utils.create_hybrid_device_mesh(
                within, between, devices, allow_split_physical_axes=True
            )
        else:
            # Elsewhere than on TPUs, devices that follow each other make a slice.
            within[0] *= slices
            arranged = mesh_utils.create_device_mesh(
                within, devices, allow_split_physical_axes=True
            )
        # With explicit axes the model's reshapes do not trace.
        return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _require_slices(slices: int, devices: Sequence[typing.Any]) -> None:
    if devices[0].platform != "tpu":
        return
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if slices != found:
        raise failures.BadInput(
            f"MeshShape.slices is {slices}, the devices lie in {found}; set it to {found}."
        )
