"""What the processes of a run say to its leader and hear from it.

Messages are lines of JSON, of at most `LINE_BYTES`. First each side proves that it knows the secret
of the run, and then believes the other one:

    leader    challenge {nonce}
    process   hello {index, count, nonce, proof}
    leader    welcome {proof}, or refused {}: it has another secret

From a process to the leader:

    pulse {tick, held, phase, seconds, waited, stack}   each second: the phase of its main thread,
                                and for how long it lasts; seconds of waiting for data, in all;
                                tick is -1 before its first step
    stop {}                     a signal asked this process to stop
    failed {code, cause}        an error ends this process
    bye {}                      this process has finished the run

From the leader:

    pulse {}                    each second
    met {}                      all processes have said hello
    hold {}                     a stop was requested: answer with a pulse that is held, and wait for
                                stop_at at the next tick
    stop_at {tick}              all processes save and stop at this tick
    end {code, cause, failed_process}     the termination notice
    done {}                     all processes have finished the run
"""

import json
import secrets
import socket
import time
import typing
from collections.abc import Mapping

from nest_dist.base import failures, files
from nest_dist.cluster import secret

PULSE_SECONDS = 1.0
# A process without a message for so long counts as lost.
SILENT_SECONDS = 30.0
# Whoever connects and does not prove within this time that it belongs to the run is dropped.
GREETING_SECONDS = 10.0
# Of a message; a text in it has at most so many characters, each of up to twelve bytes in JSON.
LINE_BYTES = 16384
_TEXT_CHARACTERS = 1000
# How long the leader waits for the other processes to end after the termination notice; and for
# those that have not come yet, so that they learn of it, too.
GRACE_SECONDS = 10.0
MEETING_SECONDS = 20.0
# Phases of the main thread that may last for any time. In them a library may hold Python's lock for
# long, and then no thread of the process answers.
UNLIMITED_PHASES = ("start", "restore", "compile")

_LARGEST = 1 << 60  # integer; more is no tick

Message = dict[str, typing.Any]  # JSON; "kind" decides which other fields it has
Kinds = Mapping[str, Mapping[str, type]]  # the fields of each kind of message

FROM_PROCESS: Kinds = {
    "hello": {"index": int, "count": int, "nonce": str, "proof": str},
    "pulse": {
        "tick": int,
        "held": bool,
        "phase": str,
        "seconds": float,
        "waited": float,
        "stack": str,
    },
    "stop": {},
    "failed": {"code": int, "cause": str},
    "bye": {},
}
FROM_LEADER: Kinds = {
    "challenge": {"nonce": str},
    "welcome": {"proof": str},
    "refused": {},
    "pulse": {},
    "met": {},
    "hold": {},
    "stop_at": {"tick": int},
    "end": {"code": int, "cause": str, "failed_process": int},
    "done": {},
}


class Refused(Exception):
    """Leader and process have other secrets, or the leader is none."""


def encode(kind: str, **fields: float | str) -> bytes:
    """One message as it goes over the wire; its texts as `printable`."""
    short = {name: printable(it) if isinstance(it, str) else it for name, it in fields.items()}
    return json.dumps({"kind": kind, **short}).encode() + b"\n"


def decode(line: bytes, kinds: Kinds) -> Message:
    """A message, whose fields have their types; texts have no control characters.

    Raises:
        ValueError: for whatever is none of these kinds, and for an exit code that is not in the
            table of them.
    """
    message = files.parsed(line)
    if not isinstance(message, dict) or message.get("kind") not in tuple(kinds):
        raise ValueError("no message")
    decoded: Message = {"kind": message["kind"]}
    for name, wanted in kinds[message["kind"]].items():
        value: typing.Any = message.get(name)
        if wanted is float and type(value) is int:
            value = min(max(value, -_LARGEST), _LARGEST) * 1.0
        kind = type(value)
        if kind is not wanted or (kind is int and abs(value) > _LARGEST):
            raise ValueError(f"{name} is no {wanted.__name__}")
        decoded[name] = printable(value) if wanted is str else value
    if decoded.get("code", failures.USAGE) not in failures.EXIT_CODES:
        raise ValueError("no exit code of ours")
    return decoded


def printable(text: str) -> str:
    """A text as messages carry it: one line, not too long, that no terminal obeys."""
    return "".join(each if each.isprintable() else " " for each in text[:_TEXT_CHARACTERS])


def greet(
    connection: socket.socket, secret_of_run: bytes, index: int, count: int
) -> typing.BinaryIO:
    """Says hello to the leader at the other end; the lines that it sends from then on.

    Raises:
        OSError: if the connection ends, or nobody answers within its timeout.
        Refused: if the other end does not know the secret, or says so of this one.
    """
    lines = connection.makefile("rb")
    challenge = _answer(lines, "challenge")
    nonce = secrets.token_hex(16)
    words = (challenge["nonce"], nonce, index, count)
    proof = secret.proof(secret_of_run, "process", *words)
    connection.sendall(encode("hello", index=index, count=count, nonce=nonce, proof=proof))
    # From now on the leader would take a closed connection for a process that is gone.
    connection.settimeout(SILENT_SECONDS)
    welcome = _answer(lines, "welcome")
    if not secret.is_proof(welcome["proof"], secret_of_run, "leader", *words):
        raise Refused
    connection.settimeout(None)
    return lines


def _answer(lines: typing.BinaryIO, kind: str) -> Message:
    if not (line := lines.readline(LINE_BYTES)):
        raise ConnectionError("the connection was closed")
    try:
        message = decode(line, FROM_LEADER)
    except ValueError:
        raise Refused from None
    if message["kind"] != kind:
        raise Refused
    return message


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
