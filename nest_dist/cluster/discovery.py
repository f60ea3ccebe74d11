"""Discovers the processes of a run from flags, Cloud TPU, GKE or Slurm; otherwise one process."""

import dataclasses
import os
import re

from nest_dist.base import checks, failures
from nest_dist.cluster import gpus, jax_private

# Processes of a run; more is a slip of the keyboard.
LARGEST_RUN = 1 << 16


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of a run, and the index of this one."""

    host: str = ""  # name or IP address of process 0, to which all connect; empty for one process
    port: int = 0  # of JAX's coordination service on that host; the leader has the one below
    count: int = 1
    index: int = 0  # this process, in [0, count)
    # The devices of this host that belong to this process; None for all
    local_devices: list[int] | None = None

    @property
    def address(self) -> str:
        """The "host:port" of JAX's coordination service."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None, wait_seconds: int
) -> Peers:
    """The peers that the flags name or, where all three are None, that JAX detects.

    JAX asks Open MPI, Slurm, GKE, the metadata of a Cloud TPU VM, then Kubernetes. Without any of
    these the run has one process. JAX_COORDINATOR_PORT overrides the port.

    Args:
        coordinator: "host:port" of process 0.
        num_processes: of the run; 1 needs nothing else.
        process_id: this process, in [0, num_processes).
        wait_seconds: how long the name of process 0's host may stay unknown.
    Raises:
        BadInput: if only some of the three are given, one is out of range, or the environment
            is one of those above and lacks something.
        Failure: if this version of JAX cannot be asked.
    """
    if num_processes == 1 and process_id in (None, 0):
        return Peers()
    if (coordinator, num_processes, process_id) != (None, None, None):
        return _checked(coordinator, num_processes, process_id)
    try:
        address, count, index, devices = jax_private.detect_processes(wait_seconds)
    except failures.Failure:
        raise
    except Exception as error:  # of the libraries that JAX asks, such as Kubernetes' own
        raise failures.BadInput(
            f"this environment does not say where the other processes are "
            f"({failures.first_line(error)}); give --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 for one process alone."
        ) from error
    if address is None or count is None or index is None or count == 1:
        return Peers()
    host, port = _split(address, "the address of process 0")
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        host = "127.0.0.1"  # so that nothing of the run can be reached from other hosts
    return Peers(host, port, count, index, gpus.of_slurm_task(devices))


def _checked(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Peers:
    if coordinator is None or num_processes is None or process_id is None:
        raise failures.BadInput(
            f"--coordinator is {coordinator}, --num_processes {num_processes}, --process_id "
            f"{process_id}; give all three, or none to let JAX detect them."
        )
    checks.in_range("--num_processes", num_processes, 1, LARGEST_RUN)
    if not 0 <= process_id < num_processes:
        raise failures.BadInput(
            f"--process_id is {process_id}; with --num_processes={num_processes} it must be "
            f"in [0, {num_processes - 1}]."
        )
    host, port = _split(coordinator, "--coordinator")
    return Peers(host, port, num_processes, process_id)


def _split(address: str, what: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s/:\[\]]+)):([0-9]{1,5})", address)
    if not match or not 1 < int(match[3]) < 65536:
        raise failures.BadInput(
            f"{what} is {address!r}; give HOST:PORT with a port from 2 to 65535, without a scheme, "
            "and an IPv6 address in brackets, as [::1]:PORT."
        )
    return match[1] or match[2], int(match[3])
