"""Public figures of TPUs and NVIDIA GPUs: upper bounds of what a device can do."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: half a chip of v2 and v3, one chip from v4 on."""

    generation: str  # as in accelerator types and topologies, "v5e" or "h200"
    # Peak floating-point operations a second, of matrices without zeros left out
    bfloat16_flops: float
    memory_bytes: float  # of HBM
    memory_bytes_per_second: float  # from and to HBM
    link_bytes_per_second: float  # sum over the links to its neighbours; of GPUs what one sends
    cycles_per_second: float  # clock rate
    host_chips: int = 0  # of a host of a large slice of TPUs
    host_cores: int = 0  # virtual cores of such a host
    devices: int = 1  # JAX devices that make a chip
    is_gpu: bool = False  # whether it is one of NVIDIA's

    @property
    def usable_bytes(self) -> float:
        """Of its memory, what JAX takes: on a GPU three quarters, unless it is told otherwise."""
        fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or 0.75)
        return self.memory_bytes * (fraction if self.is_gpu else 1)


# By `jax.Device.device_kind`. Source: the pages of the generations under
# https://cloud.google.com/tpu/docs ("Peak compute per chip (bf16)", "HBM2 capacity and bandwidth",
# "Interchip Interconnect BW", "Number of vCPUs"); links and HBM of v2 and v3: doi 10.1145/3360307,
# table 1; clocks of v2, v3 and v4: arXiv 2304.01433, table 4. The clocks of v5e, v5p and v6e are
# not published: they are the peak divided by what the matrix units do in a cycle by the estimates
# of libtpu's compiler, which are 2**17, 2**18 and 2**19 operations.
CHIPS = {
    "TPU v2": Chip("v2", 22.5e12, 8 * 2**30, 350e9, 124e9, 0.70e9, 4, 96, devices=2),
    "TPU v3": Chip("v3", 61.5e12, 16 * 2**30, 450e9, 164e9, 0.94e9, 4, 96, devices=2),
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1228e9, 300e9, 1.05e9, 4, 240),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9, 1.50e9, 4, 112),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9, 4, 208),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1640e9, 448e9, 1.75e9, 4, 180),
}


def _gpu(
    name: str, teraflops: float, memory_bytes: int, sends_gb: float, ghz: float, memory_gb: float
) -> Chip:
    """A GPU; gigabytes a second over its links and from its memory."""
    return Chip(
        name,
        teraflops * 1e12,
        memory_bytes,
        memory_gb * 1e9,
        sends_gb * 1e9,
        ghz * 1e9,
        is_gpu=True,
    )


# Peaks (dense bfloat16 on tensor cores, summed in float32), bandwidths, and NVLinks or PCIe x16:
# NVIDIA's data sheets of A100, H100, H200 and L4, that of DGX B200 divided by its eight GPUs, and
# the Ada architecture whitepaper (V2.02, appendix A) for RTX 4090. Memory as the driver counts it
# and boost clocks: openxla/xla, xla/backends/gpu/target_config/specs; for L4 and RTX 4090 what
# nvidia-smi shows, 23,034 and 24,564 MiB.
CHIPS |= {
    "NVIDIA A100-SXM4-40GB": _gpu("a100-40gb", 312, 42_331_013_120, 300, 1.41, 1555),
    "NVIDIA A100-PCIE-40GB": _gpu("a100-40gb", 312, 42_331_013_120, 32, 1.41, 1555),
    "NVIDIA A100-SXM4-80GB": _gpu("a100-80gb", 312, 85_100_068_864, 300, 1.41, 2039),
    "NVIDIA A100 80GB PCIe": _gpu("a100-80gb", 312, 85_100_068_864, 32, 1.41, 1935),
    "NVIDIA H100 80GB HBM3": _gpu("h100", 989.5, 84_942_979_072, 450, 1.98, 3350),
    "NVIDIA H100 PCIe": _gpu("h100", 756.5, 84_942_979_072, 64, 1.755, 2000),
    "NVIDIA H200": _gpu("h200", 989.5, 151_397_597_184, 450, 1.98, 4800),
    "NVIDIA B200": _gpu("b200", 2250, 191_514_411_008, 900, 1.965, 8000),
    "NVIDIA L4": _gpu("l4", 121, 23_034 * 2**20, 32, 2.04, 300),
    "NVIDIA GeForce RTX 4090": _gpu("rtx4090", 165.2, 24_564 * 2**20, 32, 2.52, 1008),
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for a CPU and others without public figures."""
    return CHIPS.get(device_kind)
