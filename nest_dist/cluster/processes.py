"""Starts the processes of a run together, and exchanges values between them without a device."""

import collections
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
        global _own
        _own = Exchange(jax_private.coordination_client(), peers.index, peers.count)
        if seen is not None:
            gpus.require_own(seen, peers.local_devices, decide)
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


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of JAX tells that another process is gone."""
    signs = ("Gloo", "closed by peer", "heartbeat", "UNAVAILABLE")
    from_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    from_jax = from_jax and not isinstance(error, failures.Failure)
    return from_jax and any(sign in str(error) for sign in signs)


class Exchange:
    """Exchanges values with the other processes, by the coordination service.

    Every step takes one request or two of each process, however many they are. So the requests of a
    start grow with the number of processes, and not with its square.
    """

    def __init__(self, client: typing.Any, index: int, count: int) -> None:
        """`client` is that of process `index` of `count`; None for one process."""
        self._client, self._index, self._count = client, index, count
        self._broadcasts = itertools.count()
        self._gathers: collections.defaultdict[str, typing.Iterator[int]] = collections.defaultdict(
            itertools.count
        )

    def barrier(self, name: str) -> None:
        """As the function of this name, below; so are the others."""
        if self._count > 1:
            self._client.wait_at_barrier(name, _LIMIT)

    def gather(self, name: str, value: Json) -> list[Json]:
        if self._count == 1:
            return [value]
        folder = f"nest_dist/{name}/{next(self._gathers[name])}/"
        self._client.key_value_set(f"{folder}{self._index}", json.dumps(value))
        self._client.wait_at_barrier(folder, _LIMIT)
        if self._index > 0:
            return []
        texts = {
            int(key.rpartition("/")[2]): it for key, it in self._client.key_value_dir_get(folder)
        }
        self._client.key_value_delete(folder)
        return [json.loads(texts[index]) for index in range(self._count)]

    def broadcast(self, make: Callable[[], Json]) -> Json:
        if self._count == 1:
            return make()
        key = f"nest_dist/broadcast/{next(self._broadcasts)}"
        if self._index == 0:
            self._client.key_value_set(key, json.dumps(make()))
        return json.loads(self._client.blocking_key_value_get(key, _LIMIT))

    def decide(self, name: str, value: Json, judge: Callable[[list[Json]], Json]) -> Json:
        values = self.gather(name, value)
        return self.broadcast(lambda: judge(values))


_own = Exchange(None, 0, 1)  # until `start`


def barrier(name: str) -> None:
    """Waits until every process has called this with a name unique in the run. Needs no device."""
    _own.barrier(name)


def gather(name: str, value: Json) -> list[Json]:
    """The `value` of every process, JSON, by process index on the primary one; [] on the others.

    The name is unique among the calls under way, and all processes call it equally often. It waits
    for all of them, and needs no device.
    """
    return _own.gather(name, value)


def broadcast(make: Callable[[], Json]) -> Json:
    """Calls `make` on the primary process and broadcasts its result, JSON. Needs no device.

    Every process calls this in the same order.
    """
    return _own.broadcast(make)


def decide(name: str, value: Json, judge: Callable[[list[Json]], Json]) -> Json:
    """What `judge` makes, on the primary process, of the values of all; see `gather`, `broadcast`.

    A short verdict goes to all processes, and not the values of all.
    """
    return _own.decide(name, value, judge)


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
