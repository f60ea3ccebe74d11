"""Public figures of TPU generations, for what a device could do at best."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: half a chip of v2 and v3, a whole one from v4 on.

    Attributes:
        generation: as in accelerator types and topologies, "v5e".
        bfloat16_flops: peak floating-point operations a second.
        memory_bytes: of HBM.
        memory_bytes_per_second: of HBM.
    """

    generation: str
    bfloat16_flops: float
    memory_bytes: float
    memory_bytes_per_second: float


# By `jax.Device.device_kind`. Source: the pages of the generations under
# https://cloud.google.com/tpu/docs ("Peak compute per chip (bf16)", "HBM2 capacity and bandwidth").
CHIPS = {
    "TPU v2": Chip("v2", 22.5e12, 8 * 2**30, 350e9),
    "TPU v3": Chip("v3", 61.5e12, 16 * 2**30, 450e9),
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1228e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1640e9),
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a device kind; None for a CPU and whatever else has no public figure here."""
    return CHIPS.get(device_kind)
