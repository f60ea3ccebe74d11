"""Exchanges between processes: with the real service, and with few requests."""

import collections
import concurrent.futures
import contextlib

import jax
import pytest
from jax._src.lib import _jax
from support import ports

from nest_dist.base import failures
from nest_dist.cluster import discovery, processes


class Counting:
    """A client that counts its requests."""

    def __init__(self, client):
        self._client, self.requests = client, collections.Counter()

    def __getattr__(self, name):
        def request(*arguments):
            self.requests[name] += 1
            return getattr(self._client, name)(*arguments)

        return request


@contextlib.contextmanager
def exchanges(count):
    """So many processes of JAX's coordination service, in this one."""
    port = ports.free()
    service = _jax.get_distributed_runtime_service(f"127.0.0.1:{port}", count)
    clients = [
        _jax.get_distributed_runtime_client(f"127.0.0.1:{port}", index, init_timeout=60)
        for index in range(count)
    ]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        counting = [Counting(client) for client in clients]
        made = [processes.Exchange(client, i, count) for i, client in enumerate(counting)]
        yield counting, lambda call: list(pool.map(call, range(count), made))
        list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()


@pytest.mark.parametrize("count", [2, 9])
def test_what_processes_exchange_arrives_with_few_requests(count):
    with exchanges(count) as (clients, everywhere):
        for _ in range(2):  # a name may come again
            gathered = everywhere(lambda index, it: it.gather("letters", ["a", index]))
            assert gathered == [[["a", index] for index in range(count)], *[[]] * (count - 1)]
        assert (
            everywhere(lambda _, it: it.broadcast(lambda: {"seven": 7})) == [{"seven": 7}] * count
        )
        assert (
            everywhere(lambda index, it: it.decide("sum", index, sum))
            == [count * (count - 1) // 2] * count
        )
        everywhere(lambda _, it: it.barrier("here"))
        most = [sum(client.requests.values()) for client in clients]
        # Process 0 reads and removes a folder for each gathering, and says each verdict.
        assert most == [3 * 4 + 2 + 2 + 1, *[3 * 2 + 1 + 1 + 1] * (count - 1)]


def test_one_process_asks_nobody():
    alone = processes.Exchange(None, 0, 1)
    alone.barrier("here")
    assert alone.gather("letters", "a") == ["a"]
    assert alone.decide("sum", 7, sum) == 7


@pytest.mark.skipif(
    hasattr(jax.config, processes.MTLS.lower()), reason="this JAX has mutual TLS itself"
)
def test_a_jax_without_mutual_tls_does_not_go_on_without_it(monkeypatch):
    monkeypatch.setenv(processes.MTLS, "/certificates/own.pem")
    peers = discovery.Peers("127.0.0.1", ports.free(), 2, 0)
    with pytest.raises(failures.BadInput, match=r"JAX_MTLS_CERT_FILE is set, but jax .* has no mu"):
        processes.start(peers)
