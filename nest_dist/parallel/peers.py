"""Finding the other processes of a run: from flags, Cloud TPU, GKE or Slurm, or alone."""

import dataclasses
import os
import re
import socket

from jax._src import clusters  # what jax.distributed.initialize() asks has no public name

from nest_dist.base import failures


@dataclasses.dataclass(frozen=True)
class Peers:
    """Where the processes of a run meet, and which of them this one is.

    Attributes:
        address: "host:port" of process 0.
        count: processes of the run.
        index: this process, in [0, count).
        local_devices: the devices of this host that are this process's; None for all.
        given: whether flags said all this.
    """

    address: str
    count: int
    index: int
    local_devices: list[int] | None = None
    given: bool = False


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None, wait_seconds: int
) -> Peers:
    """The peers that the flags name or, where all three are None, that JAX knows how to find.

    JAX asks, in this order: Open MPI (OMPI_MCA_*), a Slurm step (SLURM_*), GKE's variables
    (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES), the metadata of a Cloud TPU VM
    (agent-worker-number, worker-network-endpoints, MEGASCALE_* of tpu-env) and Kubernetes.
    JAX_COORDINATOR_PORT overrides the port. Where nothing is found, the run has one process.

    Args:
        wait_seconds: how long the name of process 0's host may stay unknown.
    Raises:
        BadInput: if only some of the three are given, one is out of range, or the environment
            is one of those above and does not say what is needed.
    """
    if (coordinator, num_processes, process_id) != (None, None, None):
        return _checked(coordinator, num_processes, process_id)
    try:
        address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, wait_seconds
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise failures.BadInput(
            f"this environment does not say where the other processes are "
            f"({failures.first_line(error)}); give --coordinator, --num_processes and --process_id."
        ) from error
    if address is None or count is None or index is None:
        return Peers(f"127.0.0.1:{_free_port()}", 1, 0)
    if re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        # JAX gives the n-th task of a node the n-th device only; the only task takes all.
        devices = None
    return Peers(address, count, index, None if devices is None else list(devices))


def require_free_port(address: str) -> None:
    """Refuses a port of this host that is taken.

    gRPC shares a port silently with another gRPC server (SO_REUSEPORT), so two runs would mix.

    Raises:
        BadInput: if it is.
    """
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise failures.BadInput(
                f"the processes meet at {address}, whose port {port} is in use on this host "
                f"({error.strerror}); end the run that holds it or choose another port "
                "(--coordinator, or JAX_COORDINATOR_PORT where JAX finds the peers)."
            ) from None


def _checked(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Peers:
    if coordinator is None or num_processes is None or process_id is None:
        raise failures.BadInput(
            f"--coordinator is {coordinator}, --num_processes {num_processes}, --process_id "
            f"{process_id}; give all three, or none to let JAX find the peers."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise failures.BadInput(
            f"--coordinator is {coordinator!r}; give host:port with a port from 1 to 65535."
        )
    if not 0 <= process_id < num_processes:
        raise failures.BadInput(
            f"--process_id is {process_id}; with --num_processes={num_processes} it must be "
            f"in [0, {num_processes - 1}]."
        )
    return Peers(coordinator, num_processes, process_id, given=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
