"""Process 0 listens at one address."""

import socket

import pytest
from support import ports

from nest_dist.base import failures
from nest_dist.cluster import addresses


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True)],
        *[("192.0.2.7", False), ("no-such-host.invalid", False)],
    ],
)
def test_loopback_is_known(host, loopback):
    assert addresses.is_loopback(host) == loopback


def test_a_server_has_the_address_of_its_host_alone():
    with addresses.listen("127.0.0.2", port := ports.free()) as server:
        assert addresses.of(server) == f"127.0.0.2:{port}"
        with pytest.raises(ConnectionRefusedError):
            addresses.connect("127.0.0.1", port, 5)
        addresses.connect("127.0.0.2", port, 5).close()


def test_the_first_address_that_this_host_has_is_taken(monkeypatch):
    own = socket.getaddrinfo

    def found(host, port, **more):
        return [*own("192.0.2.7", port, **more), *own("127.0.0.1", port, **more)]

    port = ports.free()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    with addresses.listen("named", port) as server:
        assert addresses.of(server) == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("203.0.113.7", r"the coordinator is 203.0.113.7 \(203.0.113.7\), which is no address of"),
        ("no-such-host.invalid", r"the coordinator is no-such-host.invalid \(.+\), which is no"),
    ],
)
def test_an_address_of_another_host_is_refused(host, text):
    with pytest.raises(failures.BadInput, match=text):
        addresses.listen(host, ports.free())


def test_a_port_in_use_is_an_error_of_the_system():
    with (
        addresses.listen("127.0.0.1", port := ports.free()),
        pytest.raises(OSError, match="in use"),
    ):
        addresses.listen("127.0.0.1", port)
