"""The supervisor of a process: a stop request stops all processes, a failure ends all of them.

Once a second a thread sends the status of the main thread to the leader on process 0. Another one
receives the leader's messages. They need no device and no collective. They work while the main
thread compiles, waits for data or hangs: they can end the process.
"""

import contextlib
import faulthandler
import math
import os
import signal
import socket
import threading
import time
import typing

from nest_dist.base import failures
from nest_dist.cluster import (
    activity,
    discovery,
    leader,
    meeting,
    processes,
    protocol,
    secret,
    stop_signals,
)

# Limit from the agreed stop to the end of the process: long enough for a checkpoint.
STOP_SECONDS = 300.0
# How long a stop waits for data, without which the steps that others have begun cannot be done.
STALL_SECONDS = 30.0
# How long a process whose collective failed waits for the termination notice with the cause.
REASON_SECONDS = protocol.SILENT_SECONDS + 5
STUCK_SECONDS = 600.0
_UNSAVED = "; the run goes on from the checkpoint before"


class Supervisor:
    """Supervises one process; a context manager around all its work in a run.

    A stop request before `begin` ends the run without a checkpoint.
    """

    def __init__(self) -> None:
        """Serves SIGTERM, SIGINT and SIGHUP, if they are held back."""
        self._lock, self._sending = threading.Condition(), threading.Lock()
        self._peers = discovery.Peers()
        self._met = threading.Event()
        self._tick, self._holding = -1, False  # before `begin`
        self._stop_at: int | None = None
        self._stop_agreed_at = math.inf
        self._stop_requested = self._interrupted = False  # by a signal to this process
        self._now = self._heard_at = 0.0  # own time of the watch
        self._stuck_seconds = STUCK_SECONDS
        self._activity = activity.Activity()
        self._ending = False  # by itself, whatever the leader says
        # Set when all are done or at the termination notice; on process 0 after the others' end.
        self._terminated = threading.Event()
        self._leader: leader.Leader | None = None
        self._connection: socket.socket | None = None
        self._lines: typing.BinaryIO | None = None  # that come over it
        stop_signals.listen(self._handle_signal)

    def start(
        self,
        coordinator: str | None,
        num_processes: int | None,
        process_id: int | None,
        wait_seconds: int,
        secret_file: str | None = None,
        insecure: bool = False,
    ) -> None:
        """Meets the other processes, then starts JAX.

        Args:
            coordinator: this and the next three as of `discovery.find`.
            insecure: lets processes on several hosts do without a secret.
        Raises:
            BadInput: if flags or environment name no peers, a port is in use, or there is no
                secret, or another than that of process 0.
            PeerLost: if process 0 cannot be reached within `wait_seconds`.
        """
        self._peers = discovery.find(coordinator, num_processes, process_id, wait_seconds)
        secret_of_run = secret.read(secret_file)
        if self._peers.count > 1 and not (secret_of_run or insecure):
            meeting.require_one_host(self._peers.host)
        connection, self._lines = self._connect(wait_seconds, secret_of_run)
        with self._sending:
            self._connection = connection
        if self._stop_requested:
            self._send("stop")
        for target in (self._listen, self._watch):
            threading.Thread(target=target, name="supervisor", daemon=True).start()
        self._met.wait()
        processes.start(self._peers)

    def begin(self, stuck_seconds: float = STUCK_SECONDS) -> None:
        """From now on a stop saves a checkpoint, and training may not stand still for longer."""
        self._stuck_seconds = stuck_seconds
        if self._leader is not None:
            self._leader.stuck_seconds = stuck_seconds
        self._activity.enter("step")
        self._tick = 0

    def tick(self) -> bool:
        """Whether all processes stop now. All of them call this at the same points of the program.

        It waits while the processes agree on the tick of a stop.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._holding or self._stop_at is not None)
            self._tick += 1
            return self._stop_at is not None and self._tick >= self._stop_at

    def stop_is_next(self) -> bool:
        """Whether the next tick is that of the stop; for a main thread that waits for data.

        Raises:
            Unsaved: if the data stays away, and the others have begun steps that need it.
        """
        with self._lock:
            if self._stop_at is None or self._tick + 1 >= self._stop_at:
                return self._stop_at is not None
            if self._now - self._stop_agreed_at < STALL_SECONDS:
                return False
        raise failures.Unsaved(f"asked to stop, and no data comes{_UNSAVED}.")

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Names the work of the main thread while this is open, in one or two words."""
        return self._activity.during(name)

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Leaves the run together with the others.

        Raises:
            Interrupted: if Ctrl-C stopped the run.
            PeerLost: if a collective failed and no termination notice came.
        """
        if self._connection is None:
            return
        error = error and failures.known(error)
        if self._peers.count == 1:
            self._ending = True
            self._connection.shutdown(socket.SHUT_RDWR)  # ends all threads
        elif error is None or isinstance(error, failures.Preempted):
            self._send("bye")
            self._terminated.wait()
            if self._leader is not None:  # process 0 goes last, since JAX ends who misses it
                self._leader.over.wait()
        elif processes.is_lost_peer(error):
            # The leader knows the cause; its termination notice ends this process, too.
            time.sleep(REASON_SECONDS)
            raise failures.PeerLost(
                f"another process of the run is gone ({failures.first_line(error)[:200]}); start "
                "all of them again, the run goes on from its last checkpoint."
            ) from error
        else:
            self._ending = True
            code, cause = 1, f"{type(error).__name__}: {failures.first_line(error)}"
            if isinstance(error, failures.Failure):
                code, cause = error.exit_code, failures.first_line(error)
            self._send("failed", code=code, cause=f"process {self._peers.index}: {cause}")
            self._terminated.wait(protocol.GRACE_SECONDS + 5)
        if self._interrupted and isinstance(error, failures.Preempted | failures.Unsaved):
            raise failures.Interrupted(str(error)) from None

    def _connect(
        self, wait_seconds: float, secret_of_run: bytes
    ) -> tuple[socket.socket, typing.BinaryIO]:
        """A connection to the leader and what comes over it; process 0 starts the leader."""
        index, count = self._peers.index, self._peers.count
        if index == 0:
            ours, theirs = socket.socketpair()
            self._leader = leader.Leader(
                count,
                meeting.listen(self._peers, wait_seconds) if count > 1 else None,
                wait_seconds,
                theirs,
                self._stuck_seconds,
                secret_of_run,
                lambda line: _print_error(f"nest-dist: {line}"),
            )
            return ours, protocol.greet(ours, secret_of_run, index, count)
        return meeting.connect(self._peers, wait_seconds, secret_of_run)

    def pace(self) -> dict[str, float]:
        """Step time and data wait of the slowest process and the median; on process 0, else {}."""
        return {} if self._leader is None else self._leader.pace.metrics

    # The methods below run in the threads of supervisor and signals; `_send` in the main one, too.

    def _watch(self) -> None:
        """Each second sends a pulse, and looks for a silent leader and a stop without end."""
        own_time = protocol.OwnTime()
        while not self._ending:
            # First of all: a leader that refuses this process closes the connection, and whatever
            # it has not read by then would take its words along.
            time.sleep(protocol.PULSE_SECONDS)
            self._now = now = own_time()
            silence = now - self._heard_at
            if silence > protocol.silence_limit(self._activity.phase, self._stuck_seconds):
                self._lose_leader(f"has not answered for {silence:.0f} s")
            if now > self._stop_agreed_at + STOP_SECONDS:
                phase = self._activity.phase
                cause = f"the stop took longer than {STOP_SECONDS:.0f} s ({phase}){_UNSAVED}"
                self._end(failures.PREEMPTED, cause, self._peers.index)
            self._pulse()

    def _listen(self) -> None:
        assert self._lines is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._lines.readline(protocol.LINE_BYTES):
                self._heard_at = self._now
                self._handle(protocol.decode(line, protocol.FROM_LEADER))
        self._lose_leader("is gone")

    def _handle(self, message: protocol.Message) -> None:
        kind = message["kind"]
        if kind == "met":
            self._met.set()
        elif kind == "hold":
            with self._lock:
                self._holding = True
            self._pulse()
        elif kind == "stop_at":
            with self._lock:
                self._stop_at, self._stop_agreed_at = message["tick"], self._now
                self._lock.notify_all()
        elif kind == "done":
            self._ending = True
            self._terminated.set()
        elif kind == "end":
            self._heard_at = math.inf  # while this thread waits
            if self._leader is not None and not self._interrupted:
                self._leader.over.wait()
            self._terminated.set()
            if not self._ending:
                self._end(message["code"], message["cause"], message["failed_process"])

    def _pulse(self) -> None:
        with self._lock:
            tick, held = self._tick, self._holding
        self._send("pulse", tick=tick, held=held, **self._activity.status())

    def _lose_leader(self, how: str) -> None:
        if not self._ending and self._peers.count > 1:
            self._end(failures.PEER_LOST, f"process 0 {how}", 0)

    def _end(self, code: int, cause: str, failed_process: int) -> None:
        """Ends this process; all processes print the same cause."""
        if code == failures.PEER_LOST:
            cause += "; start all processes again, the run goes on from its last checkpoint."
        _print_error(f"nest-dist: {cause}")
        if failed_process == self._peers.index and code == failures.PEER_LOST:
            with contextlib.suppress(OSError):
                faulthandler.dump_traceback(all_threads=True)
        if code == failures.PREEMPTED and self._interrupted:
            code = failures.INTERRUPTED
        failures.end_now(code)

    def _send(self, kind: str, **fields: float | str) -> None:
        # `_listen` notices a broken connection, and so does the leader.
        with self._sending, contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.sendall(protocol.encode(kind, **fields))

    def _handle_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                failures.end_now(failures.INTERRUPTED)
            self._interrupted = True
            if self._tick >= 0:
                _print_error(
                    "\nnest-dist: saving a checkpoint, then stopping; Ctrl-C again stops now."
                )
        self._stop_requested = True
        self._send("stop")
        if self._interrupted:
            self._stop_alone()  # Ctrl-C reaches all processes of a terminal
        elif self._connection is None:
            # The others would wait for a process that ends now. So it first connects and informs.
            timer = threading.Timer(protocol.MEETING_SECONDS, self._stop_alone)
            timer.daemon = True
            timer.start()

    def _stop_alone(self) -> None:
        if self._connection is None:
            self._end(failures.PREEMPTED, leader.NOTHING_TO_SAVE, -1)


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk must not prevent the end
        os.write(2, text.encode() + b"\n")
