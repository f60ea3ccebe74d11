"""The mesh: how the devices of all processes are arranged into named axes."""

import dataclasses
import math

import gin
import jax
from jax.sharding import AxisType, Mesh

from nest_dist.base import checks, failures

AXES = ("data", "fsdp")


@gin.register
@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each axis; one axis may be -1, the devices that remain.

    Attributes:
        data: shards of the batch whose parameters are copies of each other.
        fsdp: shards of the batch that also share out parameters and optimizer state.
    """

    data: int
    fsdp: int

    def __post_init__(self) -> None:
        checks.types(self)
        free = [name for name in AXES if getattr(self, name) == -1]
        if len(free) > 1:
            raise failures.BadInput(
                f"MeshShape has -1 for {' and '.join(free)}; at most one axis may take the rest."
            )
        for name in AXES:
            if (size := getattr(self, name)) != -1 and size < 1:
                raise failures.BadInput(
                    f"MeshShape.{name} is {size}; it must be at least 1, or -1 for the rest."
                )

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Devices along each axis.

        Raises:
            BadInput: if the axes do not multiply to `num_devices`.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        rest, remainder = divmod(num_devices, fixed)
        free = [name for name, size in sizes.items() if size == -1]
        if remainder or (rest != 1 and not free):
            wanted = " x ".join(f"{name}={size}" for name, size in sizes.items())
            raise failures.BadInput(
                f"MeshShape {wanted} does not divide {num_devices} devices into a whole mesh; "
                f"set one axis to -1 and let the others divide {num_devices}."
            )
        for name in free:
            sizes[name] = rest
        return sizes

    def build(self) -> Mesh:
        """The mesh over all devices of all processes."""
        sizes = self.sizes(jax.device_count())
        # make_mesh defaults to Explicit axes, with which the model's reshapes do not trace.
        return jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
        )
