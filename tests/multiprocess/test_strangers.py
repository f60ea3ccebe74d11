"""Strangers: who can reach a run, and what they find there."""

import socket
import sys

import psutil
import pytest
from support import harness, ports

SECRET = "the secret of this run"


def own_address():
    """Of this machine, other than loopback; None without one."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                return each.address
    return None


OWN = own_address()


def watched(*flags, coordinator="127.0.0.1", **variables):
    """Two processes of `support.watched`, which tick."""
    environment = harness.environment(PYTHONPATH=harness.module_path(), **variables)
    program = [sys.executable, "-m", "support.watched", *flags]
    peers = harness.peers(2, coordinator)
    return harness.Group([[*program, *each] for each in peers], environment=environment)


def listening(group):
    """The addresses at which the processes listen."""
    found = [psutil.Process(process.pid) for process in group.processes]
    return {
        connection.laddr.ip.removeprefix("::ffff:")  # as gRPC writes IPv4
        for process in [*found, *(child for each in found for child in each.children(True))]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.medium
def test_processes_of_one_host_listen_on_loopback_alone():
    with watched() as group:
        group.wait_for("tick 2\n")
        assert listening(group) == {"127.0.0.1"}
        assert group.wait() == [0, 0], group.said()


@pytest.mark.slow
@pytest.mark.skipif(OWN is None, reason="this machine has no network")
@pytest.mark.parametrize(
    ("flags", "variables"), [((), {"NEST_DIST_SECRET": SECRET}), (("--insecure",), {})]
)
def test_processes_of_several_hosts_listen_at_the_address_of_the_coordinator(flags, variables):
    with watched(*flags, coordinator=OWN, **variables) as group:
        group.wait_for("tick 2\n")
        found = listening(group)
        assert OWN in found
        # On CPUs, Gloo listens at the address that this host's name stands for.
        assert found <= {OWN, socket.gethostbyname(socket.gethostname())}
        assert group.wait() == [0, 0], group.said()


@pytest.mark.slow
def test_one_process_listens_nowhere():
    program = [sys.executable, "-m", "support.watched"]
    environment = harness.environment(PYTHONPATH=harness.module_path())
    with harness.Group([program], environment=environment) as group:
        group.wait_for("tick 2\n")
        assert listening(group) == set()


@pytest.mark.slow
@pytest.mark.skipif(OWN is None, reason="this machine has no network")
def test_several_hosts_without_a_secret_are_refused():
    with watched(coordinator=OWN) as group:
        assert group.wait() == [2, 2], group.said()
        assert group.said().count("there is no secret to keep strangers out; give all") == 2


@pytest.mark.slow
def test_a_process_with_another_secret_is_refused_and_the_run_says_so_if_it_is_missed():
    first, second = harness.peers(2)
    program = [sys.executable, "-m", "support.watched", "--wait_seconds=20"]
    environment = harness.environment(PYTHONPATH=harness.module_path())
    with (
        harness.Process([*program, *first], environment=environment) as leading,
        harness.Process(
            [*program, *second], environment={**environment, "NEST_DIST_SECRET": SECRET}
        ) as other,
    ):
        assert other.wait() == 2
        assert "have other secrets; give all processes the same one" in other.said()
        assert leading.wait() == 75
        assert "; 1 connections with another secret were refused" in leading.said()


@pytest.mark.slow
def test_a_stranger_who_registers_at_the_coordinator_of_jax_ends_no_run():
    """What JAX itself lets anyone on this host do; from others it cannot be reached."""
    port = ports.free()
    peers = [
        [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
        for index in range(2)
    ]
    program = [sys.executable, "-m", "support.watched"]
    environment = harness.environment(PYTHONPATH=harness.module_path())
    with harness.Group([[*program, *each] for each in peers], environment=environment) as group:
        group.wait_for("tick 5\n")
        code = (
            "import sys; from jax._src.lib import _jax;"
            "client = _jax.get_distributed_runtime_client(sys.argv[1], 1, init_timeout=10);"
            "client.connect()"
        )
        harness.python("-c", code, f"127.0.0.1:{port}", environment=environment)
        assert group.wait() == [0, 0], group.said()
