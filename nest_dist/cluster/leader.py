"""The leader on process 0: it receives the status of all processes and decides for all of them.

It has its own thread and plain sockets. So it needs no device and no collective, and it does not
wait for the main thread.
"""

import asyncio
import dataclasses
import math
import secrets
import socket
import threading
from collections.abc import Callable

from nest_dist.base import failures
from nest_dist.cluster import addresses, pace, protocol, secret

# Connections that have not proved yet that they belong to the run, besides one for each process.
STRANGERS = 64
NOTHING_TO_SAVE = "asked to stop before the first step: nothing to save"


@dataclasses.dataclass
class _Member:
    """The leader's record of a process."""

    index: int
    writer: asyncio.StreamWriter
    heard_at: float  # own time of its last message
    moved_at: float  # own time of the last change of its tick or phase
    # Its last pulse; empty before the first
    pulse: protocol.Message = dataclasses.field(default_factory=dict)
    left: bool = False

    def phase(self) -> str:
        return self.pulse.get("phase", "start")

    def last_status(self) -> str:
        """The phase and stack of its main thread, as last received."""
        if not self.pulse:
            return "it sent no status"
        phase, seconds = self.phase().replace("_", " "), self.pulse["seconds"]
        return f"{phase} for {seconds:.0f} s, at {self.pulse['stack']}"

    def send(self, message: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(message)


class Leader:
    """Receives the status of all processes of a run, and ends them together.

    Attributes:
        over: set when no other process waits any more for what this one has to say.
    """

    def __init__(
        self,
        count: int,
        server: socket.socket | None,
        wait_seconds: float,
        own: socket.socket,
        stuck_seconds: float,
        secret_of_run: bytes,
        say: Callable[[str], None] = print,
    ) -> None:
        """Serves those that connect to `server`; `own` is connected to this process itself.

        `say` shows a line about a slow process.
        """
        self.pace, self._say = pace.Pace(), say
        self.stuck_seconds, self.over = stuck_seconds, threading.Event()
        self._count, self._wait_seconds, self._secret = count, wait_seconds, secret_of_run
        self._address = "" if server is None else addresses.of(server)
        self._time = protocol.OwnTime()
        self._members: dict[int, _Member] = {}  # that have said hello
        # Connections that have not said hello, the oldest first.
        self._greeting: dict[asyncio.StreamWriter, None] = {}
        self._refused = 0  # that had another secret
        self._awaited = set(range(1, count))  # processes that have not come or not gone
        self._num_left = 0
        self._held: dict[int, int] = {}  # ticks of processes that hold, for a stop
        self._stopping = False
        self._stop_at: int | None = None
        self._termination_notice: bytes | None = None
        self._over_at = math.inf
        loop = asyncio.new_event_loop()  # here, where a failure has somebody to tell it to

        def serve() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._run(own, server))

        threading.Thread(target=serve, name="leader", daemon=True).start()

    async def _run(self, own: socket.socket, server: socket.socket | None) -> None:
        serving: list[object] = []  # asyncio itself keeps no reference
        serving.append(asyncio.create_task(self._serve(*await asyncio.open_connection(sock=own))))
        if server is not None:
            serving.append(
                await asyncio.start_server(
                    self._serve,
                    sock=server,
                    backlog=addresses.BACKLOG,
                    limit=protocol.LINE_BYTES,
                )
            )
        next_pulse = 0.0
        while not self.over.is_set() or any(
            not member.writer.is_closing() for member in self._members.values()
        ):
            await asyncio.sleep(0.1)
            now = self._time()
            if now > self._over_at or (self._over_at < math.inf and not self._awaited):
                self.over.set()
            if now >= next_pulse:
                next_pulse = now + protocol.PULSE_SECONDS
                self._broadcast(protocol.encode("pulse"))
                self._check_members(now)
                if line := self.pace.slow(now):
                    self._say(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        member = None
        try:
            if (greeted := await self._greeted(reader, writer)) is not None:
                member = self._admitted(writer, *greeted)
                async for line in reader:
                    self._handle(member, protocol.decode(line, protocol.FROM_PROCESS))
        except (OSError, ValueError):
            pass  # a broken connection, or not a process of this run
        writer.close()
        if member is not None:
            self._awaited.discard(member.index)
            if not member.left:
                cause = f"process {member.index} is gone ({member.last_status()})"
                self._end(failures.PEER_LOST, cause, member.index)

    async def _greeted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, int] | None:
        """Index of the other end and its number of processes, once it has proved itself.

        Raises:
            OSError, ValueError: if it does not say hello in time.
        """
        if len(self._greeting) >= self._count + STRANGERS:
            oldest = next(iter(self._greeting))
            del self._greeting[oldest]
            oldest.transport.abort()
        self._greeting[writer] = None
        try:
            nonce = secrets.token_hex(16)
            writer.write(protocol.encode("challenge", nonce=nonce))
            async with asyncio.timeout(protocol.GREETING_SECONDS):
                line = await reader.readline()
        finally:
            self._greeting.pop(writer, None)
        hello = protocol.decode(line, protocol.FROM_PROCESS)
        if hello["kind"] != "hello":
            raise ValueError("no hello")
        index, count = hello["index"], hello["count"]
        words = (nonce, hello["nonce"], index, count)
        if not secret.is_proof(hello["proof"], self._secret, "process", *words):
            self._refused += 1
            writer.write(protocol.encode("refused"))
            return None
        proof = secret.proof(self._secret, "leader", *words)
        writer.write(protocol.encode("welcome", proof=proof))
        return index, count

    def _admitted(self, writer: asyncio.StreamWriter, index: int, count: int) -> _Member:
        """Makes a connection a process of the run, or says why it is none."""
        if len(self._members) == self._count or index in self._members:
            cause = (
                f"process {index} of the run at this address is there already; end that run, or "
                "choose another port (--coordinator, or JAX_COORDINATOR_PORT)."
            )
            writer.write(
                protocol.encode("end", code=failures.USAGE, cause=cause, failed_process=-1)
            )
            raise ValueError(cause)
        member = self._members[index] = _Member(index, writer, self._time(), self._time())
        if self._termination_notice is not None:
            member.send(self._termination_notice)
        elif count != self._count:
            self._end(
                failures.USAGE,
                f"--num_processes is {count} on process {index}, {self._count} on process 0; start "
                "all processes with the same number.",
                index,
            )
        elif self._stopping:
            member.send(protocol.encode("hold"))
        elif len(self._members) == self._count:
            self._broadcast(protocol.encode("met"))
        return member

    def _handle(self, member: _Member, message: protocol.Message) -> None:
        kind, member.heard_at = message["kind"], self._time()
        if kind == "pulse":
            if any(member.pulse.get(name) != message[name] for name in ("tick", "phase")):
                member.moved_at = member.heard_at
            member.pulse = message
            self.pace.add(member.index, member.heard_at, message["tick"], message["waited"])
            if message["held"] and self._stop_at is None:
                self._choose_stop(member.index, message["tick"])
        elif kind == "stop" and not self._stopping:
            self._stopping = True
            self._broadcast(protocol.encode("hold"))
        elif kind == "failed":
            self._end(message["code"], message["cause"], member.index)
        elif kind == "bye":
            self._num_left += not member.left
            member.left = True
            if self._num_left == self._count:
                self._broadcast(protocol.encode("done"))
                self._over_at = member.heard_at + protocol.GRACE_SECONDS

    def _choose_stop(self, index: int, tick: int) -> None:
        """When all hold, they stop one tick after the furthest of them."""
        self._held[index] = tick
        if tick == -1:
            self._end(failures.PREEMPTED, NOTHING_TO_SAVE, 0)
        elif len(self._held) == self._count:
            self._stop_at = max(self._held.values()) + 1
            self._broadcast(protocol.encode("stop_at", tick=self._stop_at))

    def _check_members(self, now: float) -> None:
        """Ends the run if a process is missing or silent, or if training stands still."""
        if self._termination_notice is not None:
            return
        if len(self._members) < self._count and now > self._wait_seconds:
            missing = sorted(set(range(self._count)) - self._members.keys())
            names = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
            cause = (
                f"of {self._count} processes {names} did not come to {self._address} within "
                f"{self._wait_seconds:.0f} s (--wait_seconds)"
            )
            if self._refused:
                cause += f"; {self._refused} connections with another secret were refused"
            self._end(failures.PEER_LOST, cause, 0)
        members = [member for member in self._members.values() if not member.left]
        for member in members:
            silence = now - member.heard_at
            if silence > protocol.silence_limit(member.phase(), self.stuck_seconds):
                self._awaited.discard(member.index)
                cause = f"process {member.index} has not answered for {silence:.0f} s"
                cause += f" (last seen: {member.last_status()})"
                self._end(failures.PEER_LOST, cause, member.index)
                return
        limited = [
            each for each in members if each.pulse and each.phase() not in protocol.UNLIMITED_PHASES
        ]
        if self._stop_at is not None:
            return  # each process limits the time that a stop takes
        if limited and all(now - each.moved_at > self.stuck_seconds for each in limited):
            # At equal ticks, processes in "step" wait for the one in another phase.
            stuck = min(limited, key=lambda each: (each.pulse["tick"], each.phase() == "step"))
            cause = f"process {stuck.index} is stuck: {stuck.last_status()}"
            self._end(failures.PEER_LOST, cause, stuck.index)

    def _end(self, code: int, cause: str, failed_process: int) -> None:
        if self._termination_notice is None:
            self._termination_notice = protocol.encode(
                "end", code=code, cause=cause, failed_process=failed_process
            )
            all_met = len(self._members) == self._count
            grace = protocol.GRACE_SECONDS if all_met else protocol.MEETING_SECONDS
            self._over_at = self._time() + grace
            self._broadcast(self._termination_notice)

    def _broadcast(self, message: bytes) -> None:
        for member in self._members.values():
            member.send(message)
