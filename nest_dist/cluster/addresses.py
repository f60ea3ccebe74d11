"""Where process 0 listens: at the coordinator's address alone, never at all of a host."""

import errno
import ipaddress
import socket
import time

from nest_dist.base import failures

# Of an address that a name stands for, and that is none of this host's.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
BACKLOG = 4096
# TCP_USER_TIMEOUT: for so long the other host of a connection may answer nothing.
SILENT_SECONDS = 30.0


def is_loopback(host: str) -> bool:
    """Whether all that connect to `host` are on one host: it stands for loopback addresses."""
    try:
        resolved = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in resolved)


def listen(host: str, port: int, wait_seconds: float = 0) -> socket.socket:
    """A server at the first address of `host` that this machine has.

    Args:
        wait_seconds: how long the name may stay unknown, as that of a new pod does.
    Raises:
        OSError: if the port is in use.
        BadInput: if none of the addresses is one of this host.
    """
    limit = time.monotonic() + wait_seconds
    while True:
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            break
        except OSError as error:
            if time.monotonic() > limit:
                raise _not_here(host, failures.cause(error)) from None
            time.sleep(0.2)
    for family, _, _, _, address in resolved:
        try:
            server = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        limit_silence(server)
        return server
    raise _not_here(host, ", ".join(sorted({str(entry[4][0]) for entry in resolved})))


def connect(host: str, port: int, timeout_seconds: float) -> socket.socket:
    """A connection; connecting, sending and receiving wait no longer than the timeout.

    Raises:
        OSError: if nobody answers.
    """
    connection = socket.create_connection((host, port), timeout=timeout_seconds)
    limit_silence(connection)
    return connection


def of(server: socket.socket) -> str:
    """The "host:port" of a server."""
    host, port = server.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def limit_silence(connection: socket.socket) -> None:
    """Lets the system end a connection whose other host does not answer any more."""
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        milliseconds = int(1000 * SILENT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def _not_here(host: str, reason: str) -> failures.BadInput:
    return failures.BadInput(
        f"the coordinator is {host} ({reason}), which is no address of process 0's host; give one, "
        "as --coordinator=ADDRESS:PORT."
    )
