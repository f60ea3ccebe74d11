"""Processes of a run: starting them together, who leads, and agreeing without a collective."""

import itertools
import sys
import threading
import typing
from collections.abc import Callable

import jax
from jax._src import distributed  # the coordination service's client has no public name

from nest_dist.base import failures, memory
from nest_dist.parallel import peers

# When JAX itself notices a lost peer: later than the watch, but at a time when there is none yet.
HEARTBEAT_SECONDS = 40
# How long the end of a run waits for the processes that are not there yet.
SHUTDOWN_SECONDS = 60
_TOLD = itertools.count()


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    wait_seconds: int = 300,
) -> None:
    """Starts `jax.distributed`; call it once, before anything touches a device.

    With no arguments the peers are found as `peers.find` tells (Cloud TPU, GKE, Slurm); where there
    is no such environment, the run has one process.

    Args:
        coordinator: "host:port" of process 0.
        num_processes: processes of the whole run.
        process_id: this process, in [0, num_processes).
        wait_seconds: how long to wait for the others before giving up.
    Raises:
        BadInput: if the peers cannot be told, or the port is taken.
    """
    if jax.config.jax_platforms == "cpu":
        memory.keep_freed()  # before XLA has threads
    found = peers.find(coordinator, num_processes, process_id, wait_seconds)
    if found.index == 0:
        peers.require_free_port(found.address)
    # JAX aborts the process when peers stay away; this timer ends it first, in one line.
    timer = threading.Timer(wait_seconds, _give_up, (found, wait_seconds))
    timer.daemon = True
    timer.start()
    # SIGTERM is the watch's, which also hears it while the main thread is busy.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=found.address,
        num_processes=found.count,
        process_id=found.index,
        local_device_ids=found.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=wait_seconds + 60,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    timer.cancel()
    if jax.default_backend() == "cpu":
        memory.keep_freed()


def lead() -> bool:
    """Whether this process writes what is written once: logs, TensorBoard, configuration."""
    return jax.process_index() == 0


def barrier(name: str, timeout_seconds: int = 600) -> None:
    """Waits until every process has come here. Needs no device, so compile times may differ.

    Args:
        name: unique in the run.
        timeout_seconds: limit, after which the error of JAX's coordination service is raised.
    """
    _client().wait_at_barrier(name, timeout_seconds * 1000)


def gather(name: str, value: str, timeout_seconds: int = 120) -> list[str]:
    """The `value` of every process, by process index. Needs no device.

    Args:
        name: unique in the run.
        value: this process's text.
        timeout_seconds: limit for each process.
    """
    client = _client()
    client.key_value_set(f"nest_dist/{name}/{jax.process_index()}", value)
    return [
        client.blocking_key_value_get(f"nest_dist/{name}/{index}", timeout_seconds * 1000)
        for index in range(jax.process_count())
    ]


def collected(name: str, value: str, timeout_seconds: int = 3600) -> list[str]:
    """The `value` of every process, by process index, on the lead process; nothing on the others.

    Leaves nothing behind, so it suits what is told again and again. Needs no device.

    Args:
        name: unique among those under way.
        value: this process's text.
        timeout_seconds: limit for each process.
    """
    if jax.process_count() == 1:
        return [value]
    client = _client()
    client.key_value_set(f"nest_dist/{name}/{jax.process_index()}", value)
    if not lead():
        return []
    keys = [f"nest_dist/{name}/{index}" for index in range(jax.process_count())]
    found = [client.blocking_key_value_get(key, timeout_seconds * 1000) for key in keys]
    for key in keys:
        client.key_value_delete(key)
    return found


def told(make: Callable[[], str], timeout_seconds: int = 3600) -> str:
    """What `make` gives on the lead process, where alone it is called, on every process.

    Every process calls this in the same order. Needs no device.

    Args:
        make: gives the text.
        timeout_seconds: how long the others wait for it.
    """
    if jax.process_count() == 1:
        return make()
    client, key = _client(), f"nest_dist/told/{next(_TOLD)}"
    if lead():
        client.key_value_set(key, make())
    return str(client.blocking_key_value_get(key, timeout_seconds * 1000))


def announce(name: str, value: str) -> None:
    """Tells all processes something that they may ask for at any time; the first to tell wins."""
    try:
        _client().key_value_set(f"nest_dist/{name}", value)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def announced(name: str) -> str | None:
    """What a process has announced, None if none has yet. Never waits."""
    try:
        return str(_client().key_value_try_get(f"nest_dist/{name}"))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def agree(name: str, value: str, remedy: str) -> None:
    """Checks that all processes hold the same text.

    Raises:
        BadInput: on every process, naming the first one that differs from process 0.
    """
    values = gather(name, value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise failures.BadInput(
                f"{name} of process {index} is {other!r}, of process 0 {values[0]!r}; {remedy}."
            )


def leave() -> None:
    """Leaves the run; waits for all other processes to do the same."""
    jax.distributed.shutdown()


def coordinator_host() -> str:
    """Where process 0 can be reached."""
    address = distributed.global_state.coordinator_address
    return str(address).rpartition(":")[0].strip("[]")


def _client() -> typing.Any:
    return distributed.global_state.client


def _give_up(found: peers.Peers, wait_seconds: int) -> None:
    print(
        f"nest-dist: process {found.index} waited {wait_seconds} s at {found.address} and not all "
        f"{found.count} processes came; start the missing ones within --wait_seconds, or lower "
        "--num_processes.",
        file=sys.stderr,
        flush=True,
    )
    # Wrong flags stay wrong; in a cluster, the next attempt may find all hosts there.
    failures.end_now(failures.USAGE if found.given else failures.PEER_LOST)
