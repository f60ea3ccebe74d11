"""The mesh: the devices of all processes, arranged along named axes."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from nest_dist.base import failures, settings

# The axis with the most communication comes last: its devices are nearest to each other.
AXES = ("data", "fsdp", "rows", "tensor")


@settings.register
class MeshShape:
    """The number of devices along each axis; one of them may be -1: all remaining devices.

    Attributes:
        data: shards of the batch in one slice, each with a copy of the parameters.
        fsdp: shards of the batch that also shard parameters and optimizer state.
        tensor: shards of attention heads and of the hidden channels of MLPs.
        rows: shards of each image, by rows of blocks.
        slices: groups of devices with a slow network between them. Each holds a copy of the
            parameters: on the mesh the axis `data` has `slices * data` devices.
    """

    data: int
    fsdp: int
    tensor: int = 1
    rows: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        free = [name for name, size in vars(self).items() if size == -1]
        if len(free) > 1:
            raise failures.BadInput(
                f"MeshShape has -1 for {' and '.join(free)}; at most one may take the rest."
            )
        for name, size in vars(self).items():
            if size < -1 or size == 0:
                raise failures.BadInput(
                    f"MeshShape.{name} is {size}; it must be at least 1, or -1 for the rest."
                )

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The five sizes, with -1 replaced by the number of remaining devices.

        Raises:
            BadInput: if they do not multiply to `num_devices`.
        """
        rest = num_devices // math.prod(size for size in vars(self).values() if size != -1)
        sizes = {name: rest if size == -1 else size for name, size in vars(self).items()}
        if math.prod(sizes.values()) != num_devices:
            wanted = " x ".join(f"{name}={size}" for name, size in vars(self).items() if size != 1)
            raise failures.BadInput(
                f"MeshShape {wanted or 'of 1 device'} does not divide {num_devices} devices into "
                f"a whole mesh; set one to -1 and let the others divide {num_devices}."
            )
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices`; by default over all devices of all processes.

        Raises:
            BadInput: if the sizes do not fit the devices or their slices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        slices, within = sizes["slices"], [sizes[name] for name in AXES]
        if devices[0].platform == "tpu":
            actual = len({getattr(device, "slice_index", 0) for device in devices})
            if slices != actual:
                raise failures.BadInput(
                    f"MeshShape.slices is {slices}, the devices lie in {actual}; set it to "
                    f"{actual}."
                )
        if slices > 1 and hasattr(devices[0], "slice_index"):
            between = [slices, *(1 for _ in AXES[1:])]
            arranged = mesh_utils.create_hybrid_device_mesh(
                within, between, devices, allow_split_physical_axes=True
            )
        else:
            # On other devices than TPUs, consecutive devices make a slice.
            within[0] *= slices
            arranged = mesh_utils.create_device_mesh(
                within, devices, allow_split_physical_axes=True
            )
        # With explicit axes the model's reshapes do not trace.
        return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
