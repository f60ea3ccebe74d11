"""Starts the processes of a run together, and exchanges values between them without a device."""

import itertools
import json
import os
import sys
import typing
from collections.abc import Callable

import jax

from nest_dist.base import allocator, failures
from nest_dist.cluster import addresses, discovery, gpus, jax_private, relay

Json = typing.Any

# JAX measures heartbeats by the wall clock, which may be set. So the supervisor alone watches, and
# JAX gets the largest limit that it takes.
HEARTBEAT_SECONDS = 2_000_000_000
# How long a process may wait for another at the same point of the program: as long as the slowest
# takes. The supervisor ends the run if that one is gone.
LIMIT_SECONDS = 86400
# Of JAX 0.12 and newer, for its coordination service.
MTLS = "JAX_MTLS_CERT_FILE"
_LIMIT = LIMIT_SECONDS * 1000  # milliseconds
_BROADCASTS = itertools.count()
_PUBLISHED: dict[str, str] = {}  # of a run of one process


def start(peers: discovery.Peers) -> None:
    """Starts JAX, and `jax.distributed` if there are other processes, which must all have met.

    Call it once, before anything touches a device.

    Raises:
        BadInput: if the GPUs that JAX is to use cannot be used, or belong to two processes; or if
            this JAX lacks the mutual TLS that the environment asks for.
    """
    if jax.config.jax_platforms == "cpu":
        allocator.keep_freed()  # before XLA has threads
    seen = gpus.require()
    if peers.count > 1:
        # SIGTERM belongs to the supervisor, which also receives it while the main thread is busy.
        jax.config.update("jax_enable_preemption_service", False)
        # Else JAX ends the run when the wall clock is set back.
        jax.config.update("jax_enable_recoverability", True)
        _require_mtls_of_jax()
        address, bind_address = peers.address, None
        if peers.index == 0:
            with addresses.listen(peers.host, peers.port) as probe:
                bind_address = addresses.of(probe)
        elif sys.platform == "linux":
            address = relay.start(peers.host, peers.port)
        jax.distributed.initialize(
            coordinator_address=address,
            coordinator_bind_address=bind_address,
            num_processes=peers.count,
            process_id=peers.index,
            local_device_ids=peers.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=LIMIT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        if seen is not None:
            gpus.require_own(seen, peers.local_devices, peers.index, peers.count)
    if seen is not None:
        gpus.require_started()
    if jax.default_backend() == "cpu":
        allocator.keep_freed()


def _require_mtls_of_jax() -> None:
    """JAX reads the variables itself; an older one would not, and say nothing."""
    if os.environ.get(MTLS) and not hasattr(jax.config, MTLS.lower()):
        raise failures.BadInput(
            f"{MTLS} is set, but jax {jax.__version__} has no mutual TLS; install a newer one, or "
            "unset it."
        )


def is_primary() -> bool:
    """Whether this process writes the files and the output of the run: the one with index 0."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called this with a name unique in the run. Needs no device."""
    if jax.process_count() > 1:
        jax_private.coordination_client().wait_at_barrier(name, _LIMIT)


def all_gather(name: str, value: Json) -> list[Json]:
    """The `value` of every process, by process index; see `gather` and `broadcast`."""
    values = gather(name, value)
    gathered: list[Json] = broadcast(lambda: values)
    return gathered


def gather(name: str, value: Json) -> list[Json]:
    """The `value` of every process, JSON, by process index on the primary one; [] on the others.

    The name is unique among the calls under way. Needs no device.
    """
    if jax.process_count() == 1:
        return [value]
    client = jax_private.coordination_client()
    client.key_value_set(f"nest_dist/{name}/{jax.process_index()}", json.dumps(value))
    if not is_primary():
        return []
    keys = [f"nest_dist/{name}/{index}" for index in range(jax.process_count())]
    values = [json.loads(client.blocking_key_value_get(key, _LIMIT)) for key in keys]
    for key in keys:
        client.key_value_delete(key)
    return values


def broadcast(make: Callable[[], Json]) -> Json:
    """Calls `make` on the primary process and broadcasts its result, JSON. Needs no device.

    Every process calls this in the same order.
    """
    if jax.process_count() == 1:
        return make()
    client, key = jax_private.coordination_client(), f"nest_dist/broadcast/{next(_BROADCASTS)}"
    if is_primary():
        client.key_value_set(key, json.dumps(make()))
    return json.loads(client.blocking_key_value_get(key, _LIMIT))


def publish(name: str, value: str) -> None:
    """Stores a text for all processes; the first text of a name is never replaced."""
    if jax.process_count() == 1:
        _PUBLISHED.setdefault(name, value)
        return
    try:
        jax_private.coordination_client().key_value_set(f"nest_dist/{name}", value)
    except jax.errors.JaxRuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def published(name: str) -> str | None:
    """The published text of a name, None if there is none yet. Never waits."""
    if jax.process_count() == 1:
        return _PUBLISHED.get(name)
    try:
        return str(jax_private.coordination_client().key_value_try_get(f"nest_dist/{name}"))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
