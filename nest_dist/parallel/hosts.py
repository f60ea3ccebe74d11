"""Processes of a run: starting them together, who leads, and agreeing without a collective."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed  # the coordination service's client has no public name
from jax.experimental import multihost_utils

from nest_dist.base import failures
from nest_dist.parallel import peers

# A lost peer is noticed after this long; JAX's own default is 100 s.
HEARTBEAT_SECONDS = 30
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
    found = peers.find(coordinator, num_processes, process_id, wait_seconds)
    if found.index == 0:
        peers.require_free_port(found.address)
    # JAX aborts the process when peers stay away; this timer ends it first, in one line.
    timer = threading.Timer(wait_seconds, _give_up, (found, wait_seconds))
    timer.daemon = True
    timer.start()
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


class StopRequest:
    """SIGTERM or Ctrl-C to any process becomes one step at which all of them stop.

    A context manager, open while the run can be stopped.

    JAX's preemption service spreads a SIGTERM; an interrupt is turned into one. A second Ctrl-C
    ends this process at once.
    """

    def __init__(self) -> None:
        self.interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def reached(self, step: int) -> bool:
        """Whether all processes stop after `step`; call it at every step, on every process."""
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: types.TracebackType | None,
    ) -> None:
        """Gives Ctrl-C back to Python; says so if it was Ctrl-C that stopped the run."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.interrupted and isinstance(error, failures.Preempted):
            raise failures.Interrupted(str(error)) from None

    def _interrupt(self, _signal: int, _frame: types.FrameType | None) -> None:
        if self.interrupted:
            failures.end_now(failures.INTERRUPTED)
        self.interrupted = True
        os.write(2, b"\nnest-dist: saving a checkpoint, then stopping; Ctrl-C again stops now.\n")
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def joint_end() -> Iterator[None]:
    """Leaves the run together with the others, whether it ends well or with a failure of all.

    Raises:
        PeerLost: if a collective failed because another process is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not isinstance(error, failures.Failure) and _tells_of_lost_peer(error):
            raise failures.PeerLost(
                f"another process of the run is gone ({failures.first_line(error)[:200]}); start "
                "all of them again, the run goes on from its last checkpoint."
            ) from error
        _leave()
        raise
    except failures.Failure:
        _leave()
        raise
    _leave()


def _client() -> typing.Any:
    return distributed.global_state.client


def _leave() -> None:
    # Process 0 serves the others: were it gone first, they would end as if it had crashed.
    jax.distributed.shutdown()


def _tells_of_lost_peer(error: Exception) -> bool:
    text = str(error)
    return any(sign in text for sign in ("Gloo", "closed by peer", "heartbeat", "UNAVAILABLE"))


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
