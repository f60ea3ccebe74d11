"""What the processes of a run say to its leader and hear from it, and the connections for it.

Messages are lines of JSON. From a process to the leader:

    hello {index, count}        the first message
    pulse {tick, held, phase, seconds, stack}   each second: the phase of its main thread, and for
                                how long it lasts; tick is -1 before its first step
    stop {}                     a signal asked this process to stop
    failed {code, cause}        an error ends this process
    bye {}                      this process has finished the run

From the leader:

    pulse {}                    each second
    met {}                      all processes have said hello
    hold {}                     a stop was requested: answer with a pulse that is held, and wait for
                                stop_at at the next tick
    stop_at {tick}              all processes save and stop at this tick
    end {code, cause, failed_process}     the termination notice, also for who is not welcome
    done {}                     all processes have finished the run
"""

import json
import socket
import time
import typing

PULSE_SECONDS = 1.0
# A process without a message for so long counts as lost.
SILENT_SECONDS = 30.0
# How long the leader waits for the other processes to end after the termination notice; and for
# those that have not come yet, so that they learn of it, too.
GRACE_SECONDS = 10.0
MEETING_SECONDS = 20.0
# Phases of the main thread that may last for any time. In them a library may hold Python's lock for
# long, and then no thread of the process answers.
UNLIMITED_PHASES = ("start", "restore", "compile")

Message = dict[str, typing.Any]  # JSON; "kind" decides which other fields it has


def encode(kind: str, **fields: float | str) -> bytes:
    """One message as it goes over the wire."""
    return json.dumps({"kind": kind, **fields}).encode() + b"\n"


class OwnTime:
    """Seconds during which the calling thread ran.

    A process that is suspended, or does not get Python's lock, cannot hear the others. So such time
    says nothing about them: between two calls at most twice `PULSE_SECONDS` count.
    """

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def __call__(self) -> float:
        """The seconds so far; to be called every `PULSE_SECONDS`."""
        now = time.monotonic()
        self._seconds += min(now - self._last, 2 * PULSE_SECONDS)
        self._last = now
        return self._seconds


def silence_limit(phase: str, stuck_seconds: float) -> float:
    """How long a process may be silent whose main thread is in this phase."""
    return max(SILENT_SECONDS, stuck_seconds if phase in UNLIMITED_PHASES else 0)


def listen(port: int) -> socket.socket:
    """A server on all addresses of this host, whether or not it has IPv6.

    Raises:
        OSError: if the port is in use.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    _limit_silence(server)
    return server


def connect(host: str, port: int, wait_seconds: float) -> socket.socket:
    """A connection to the leader, tried until it listens.

    Raises:
        OSError: of the last attempt, after `wait_seconds`.
    """
    limit = time.monotonic() + wait_seconds
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)
            continue
        connection.settimeout(None)
        _limit_silence(connection)
        return connection


def _limit_silence(connection: socket.socket) -> None:
    """Lets the system end a connection whose other host does not answer any more."""
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        milliseconds = int(1000 * SILENT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
