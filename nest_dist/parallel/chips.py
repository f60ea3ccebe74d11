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
        link_bytes_per_second: to all its neighbours together.
        cycles_per_second: the clock.
        devices: that make a chip.
    """

    generation: str
    bfloat16_flops: float
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    cycles_per_second: float
    devices: int = 1


# By `jax.Device.device_kind`. Source: the pages of the generations under
# https://cloud.google.com/tpu/docs ("Peak compute per chip (bf16)", "HBM2 capacity and bandwidth",
# "Interchip Interconnect BW"); links of v2 and v3: doi 10.1145/3360307, table 1; clocks of v2, v3
# and v4: arXiv 2304.01433, table 4. The clocks of v5e, v5p and v6e are not published: they are the
# peak divided by what the matrix units do in a cycle by the estimates of libtpu's compiler, which
# are 2**17, 2**18 and 2**19 operations.
CHIPS = {
    "TPU v2": Chip("v2", 22.5e12, 8 * 2**30, 350e9, 124e9, 0.70e9, devices=2),
    "TPU v3": Chip("v3", 61.5e12, 16 * 2**30, 450e9, 164e9, 0.94e9, devices=2),
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9, 1.50e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1640e9, 448e9, 1.75e9),
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a device kind; None for a CPU and whatever else has no public figure here."""
    return CHIPS.get(device_kind)
