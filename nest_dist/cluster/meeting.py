"""How a process reaches the leader on process 0, and where that one listens."""

import socket
import time
import typing

from nest_dist.base import failures
from nest_dist.cluster import addresses, discovery, protocol, secret

# Between two attempts to connect.
_PAUSE_SECONDS = 0.2


def connect(
    peers: discovery.Peers, wait_seconds: float, secret_of_run: bytes
) -> tuple[socket.socket, typing.BinaryIO]:
    """A connection to the leader, which both ends have proved to each other, and its lines.

    Raises:
        BadInput: if the leader has another secret.
        PeerLost: if it cannot be reached within `wait_seconds`.
    """
    host, port = peers.host, peers.port - 1
    limit = time.monotonic() + wait_seconds
    while True:
        try:
            connection = addresses.connect(host, port, protocol.GREETING_SECONDS)
            lines = protocol.greet(connection, secret_of_run, peers.index, peers.count)
        except OSError as error:
            if time.monotonic() > limit:
                raise failures.PeerLost(
                    f"process {peers.index} did not reach process 0 at {host}:{port} within "
                    f"{wait_seconds} s ({failures.first_line(error)}); start process 0 within "
                    "--wait_seconds, correct --coordinator, or let the hosts reach each other on "
                    f"ports {port} and {port + 1}."
                ) from None
            time.sleep(_PAUSE_SECONDS)
        except protocol.Refused:
            raise failures.BadInput(
                f"process {peers.index} and who listens at {host}:{port} have other secrets; give "
                f"all processes the same one ({secret.VARIABLE} or --secret_file), or another port."
            ) from None
        else:
            return connection, lines


def listen(peers: discovery.Peers, wait_seconds: float) -> socket.socket:
    """Where the leader listens, at the address of the coordinator.

    Raises:
        BadInput: if the port, or that of JAX's service above it, is in use.
    """
    host, port = peers.host, peers.port - 1
    try:
        # gRPC shares a port silently with another gRPC server: two runs would mix.
        addresses.listen(host, port + 1, wait_seconds).close()
        return addresses.listen(host, port)
    except OSError as error:
        raise failures.BadInput(
            f"process 0 needs ports {port} and {port + 1} of this host "
            f"({failures.first_line(error)}); end the run that holds one, or choose others "
            "(--coordinator, or JAX_COORDINATOR_PORT where JAX detects the processes)."
        ) from None


def require_one_host(host: str) -> None:
    """Refuses, for a run without a secret, a coordinator that other hosts reach."""
    if not addresses.is_loopback(host):
        raise failures.BadInput(
            f"the coordinator is {host}, which other hosts reach, and there is no secret to keep "
            f"strangers out; give all processes the same {secret.VARIABLE} or --secret_file, as "
            "all launchers do, or --insecure."
        )
