"""Devices of absent TPUs and GPUs, for which their compilers compile all the same."""

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

from nest_dist.base import checks, failures
from nest_dist.rehearsal import bundles, gpus

# Shapes of a slice; the compiler also accepts other multiples of the chips of a host.
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
    # Outside a TPU VM, libtpu would ask Google's metadata server for these, or complain; the
    # compiler needs none of them.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # No process uses a TPU, so several may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of `slices` slices of a topology such as "v5e:16x16" or "h200:8", to compile for.

    Raises:
        BadInput: if the compiler is not installed or does not know the topology.
    """
    checks.in_range("--slices", slices, 1)
    if gpus.knows(name):
        return gpus.devices(name, slices)
    if importlib.util.find_spec("libtpu") is None:
        raise failures.BadInput(
            f"--topology is {name!r}, but the compiler for TPUs is not installed; "
            "pip install 'nest_dist[rehearse]' (Linux on x86-64)."
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # A TPU of this machine stays free for other processes.
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, int | str] = {"num_slices": slices} if slices > 1 else {}
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on Cloud TPU
    try:
        with _signals_kept(), bundles.asked_for():
            return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        known = "; ".join(f"{chip}:{', '.join(shapes)}" for chip, shapes in KNOWN.items())
        known += f"; {':N, '.join(gpus.ARCHITECTURES)}:N"
        raise failures.BadInput(
            f"--topology is {name!r}, which the compiler does not know "
            f"({failures.first_line(error)[:120]}); known are {known}."
        ) from None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Undoes what libtpu does when it loads: it ignores SIGHUP and prints a stack at SIGTERM."""
    handlers = {it: signal.getsignal(it) for it in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
