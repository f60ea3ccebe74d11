"""What process 0 does for the watch of all: hears every process, decides once, tells everyone.

A thread of its own and plain TCP, so that it needs no device, no collective and nothing of the main
thread. Messages are lines of JSON. From a process to the hub:

    hello {index, token}        first of all
    pulse {tick, phase, seconds, where}   each second; what its main thread is doing, since when
    stop {}                     it was asked to stop
    at {tick}                   answer to hold; it goes no further until it hears stop_at; -1 if it
                                has not begun, so that there is nothing to save
    failed {code, cause}        it cannot go on
    bye {}                      it leaves, the run is over for it

From the hub: pulse {} each second, hold {}, stop_at {tick}, and end {code, cause, culprit}.
"""

import contextlib
import dataclasses
import json
import secrets
import selectors
import socket
import threading
import time
import typing

from nest_dist.base import failures

PULSE_SECONDS = 1.0
# A process that is not heard of for so long is taken for lost. JAX's own heartbeat comes later.
SILENT_SECONDS = 30.0
# How long the hub waits for the others to end after it told them to.
FAREWELL_SECONDS = 10.0
# What a main thread does where it may stay as long as it takes.
PATIENT_PHASES = ("start", "restore", "compile")

Message = dict[str, typing.Any]


def encode(kind: str, **fields: typing.Any) -> bytes:
    """One message as it goes over the wire."""
    return json.dumps({"kind": kind, **fields}).encode() + b"\n"


class Lines:
    """Messages from the bytes of a connection."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


@dataclasses.dataclass
class _Member:
    """What the hub knows of a process."""

    connection: socket.socket
    lines: Lines = dataclasses.field(default_factory=Lines)
    index: int | None = None
    heard: float = dataclasses.field(default_factory=time.monotonic)
    pulse: Message = dataclasses.field(default_factory=dict)
    moved: float = dataclasses.field(default_factory=time.monotonic)
    held_at: int | None = None
    left: bool = False

    def story(self) -> str:
        """What its main thread was last seen doing."""
        if not self.pulse:
            return "it never said what it does"
        phase, seconds = self.pulse["phase"].replace("_", " "), self.pulse["seconds"]
        return f"{phase} for {seconds:.0f} s, at {self.pulse['where']}"


class Hub:
    """Hears all processes of a run and ends them together."""

    def __init__(
        self,
        count: int,
        stuck_seconds: float,
        only_here: bool,
    ) -> None:
        """Starts to listen.

        Args:
            count: processes of the run, this one included.
            stuck_seconds: how long training may stand still.
            only_here: whether all processes are on this host.
        """
        self.token = secrets.token_hex(16)
        self.farewell = threading.Event()  # set when everyone has been told and is gone
        self._count = count
        self._stuck_seconds = stuck_seconds
        self._members: list[_Member] = []
        self._stopping = False
        self._verdict: bytes | None = None
        self._silent: int | None = None
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._server = _listen("127.0.0.1" if only_here else "")
        self._selector.register(self._server, selectors.EVENT_READ)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        next_pulse = time.monotonic()
        told_at = None
        while not self._closing.is_set():
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._receive(key.data)
            now = time.monotonic()
            if self._verdict is not None:
                told_at = told_at or now
                awaited = [it for it in self._members if it.index not in (0, self._silent)]
                if not awaited or now - told_at > FAREWELL_SECONDS:
                    self.farewell.set()
            if now >= next_pulse:
                next_pulse = now + PULSE_SECONDS
                self._tell(encode("pulse"))
                self._judge(now)
        for member in list(self._members):
            self._forget(member)
        self._selector.close()
        self._server.close()

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.setblocking(False)
        member = _Member(connection)
        self._members.append(member)
        self._selector.register(connection, selectors.EVENT_READ, member)

    def _receive(self, member: _Member) -> None:
        try:
            data = member.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(member)
            if member.index is not None and not member.left:
                self._end(
                    failures.PEER_LOST,
                    f"process {member.index} is gone ({member.story()})",
                    member.index,
                )
            return
        try:
            for message in member.lines.feed(data):
                self._hear(member, message)
        except (ValueError, KeyError, TypeError):
            self._forget(member)  # none of ours

    def _hear(self, member: _Member, message: Message) -> None:
        kind = message["kind"]
        member.heard = time.monotonic()
        if member.index is None:
            if kind != "hello" or not secrets.compare_digest(message["token"], self.token):
                raise ValueError("a stranger")
            member.index = int(message["index"])
            if self._verdict is not None:
                self._send(member, self._verdict)
            elif self._stopping:
                self._send(member, encode("hold"))
        elif kind == "pulse":
            if any(member.pulse.get(key) != message[key] for key in ("tick", "phase")):
                member.moved = member.heard
            member.pulse = message
        elif kind == "stop" and not self._stopping:
            self._stopping = True
            self._tell(encode("hold"))
        elif kind == "at":
            member.held_at = message["tick"]
            self._agree()
        elif kind == "failed":
            self._end(message["code"], message["cause"], member.index)
        elif kind == "bye":
            member.left = True

    def _agree(self) -> None:
        """Once all have said where they are, the next tick of the foremost is where they stop."""
        places = [member.held_at for member in self._members]
        known = [place for place in places if place is not None]
        if len(known) < self._count:
            return  # some may still be on their way to the meeting
        if -1 in known:
            self._end(failures.PREEMPTED, "asked to stop before the first step: nothing to save", 0)
        else:
            self._tell(encode("stop_at", tick=max(known) + 1))

    def _judge(self, now: float) -> None:
        """Looks for processes that are silent or stand still."""
        if self._verdict is not None:
            return
        for member in self._members:
            if member.index is None or member.left:
                continue
            if (silence := now - member.heard) > SILENT_SECONDS:
                self._silent = member.index
                self._end(
                    failures.PEER_LOST,
                    f"process {member.index} has not answered for {silence:.0f} s "
                    f"(last seen: {member.story()})",
                    member.index,
                )
                return
        judged = [member for member in self._members if self._must_move(member)]
        if judged and all(now - member.moved > self._stuck_seconds for member in judged):
            # The others wait for the devices, and so for the one that does something else.
            worst = min(judged, key=lambda it: (it.pulse["tick"], it.pulse["phase"] == "step"))
            self._end(
                failures.PEER_LOST,
                f"process {worst.index} is stuck: {worst.story()}",
                typing.cast(int, worst.index),
            )

    def _must_move(self, member: _Member) -> bool:
        known = member.index is not None and not member.left and bool(member.pulse)
        return known and member.pulse["phase"] not in PATIENT_PHASES

    def _end(self, code: int, cause: str, culprit: int) -> None:
        if self._verdict is None:
            self._verdict = encode("end", code=code, cause=cause, culprit=culprit)
            self._tell(self._verdict)

    def _tell(self, message: bytes) -> None:
        for member in list(self._members):
            if member.index is not None:
                self._send(member, message)

    def _send(self, member: _Member, message: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever does not read will be missed
            member.connection.send(message)

    def _forget(self, member: _Member) -> None:
        if member in self._members:
            self._members.remove(member)
            self._selector.unregister(member.connection)
            member.connection.close()


def _listen(host: str) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server((host, 0), backlog=1024)
