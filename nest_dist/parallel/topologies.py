"""The devices of TPUs that are not here: the compiler can compile for them all the same."""

import importlib.util
import os
import typing
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from nest_dist.base import checks, failures

# Of a slice; the compiler also takes other multiples of the chips of a host.
SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
KNOWN = {
    "v2": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": CUBES,
    "v5e": SQUARES,
    "v5p": CUBES,
    "v6e": SQUARES,
}
ENVIRONMENT = {
    # On any machine but a TPU VM, libtpu would ask Google's metadata server, or complain of what
    # it does not find there; none of it matters to the compiler.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Nothing is run on a TPU here, so that several processes may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str, slices: int = 1) -> Sequence[typing.Any]:
    """What stands for each device of a topology when compiling.

    Args:
        name: as "v5e:16x16".
        slices: so many of it, with a slow network between them.
    Raises:
        BadInput: if the compiler is not installed or does not know the topology.
    """
    checks.in_range("--slices", slices, 1)
    if importlib.util.find_spec("libtpu") is None:
        raise failures.BadInput(
            f"--topology is {name!r}, but the compiler for TPUs is not installed; "
            "pip install 'nest_dist[rehearse]' (Linux on x86-64)."
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Where there is a TPU, it stays free for whoever uses it.
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, typing.Any] = {"num_slices": slices} if slices > 1 else {}
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on Cloud TPU
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise failures.BadInput(
            f"--topology is {name!r}, which the compiler does not know "
            f"({failures.first_line(error)[:120]}); known are {_known()}."
        ) from None


def _known() -> str:
    return "; ".join(f"{chip}:{', '.join(shapes)}" for chip, shapes in KNOWN.items())
