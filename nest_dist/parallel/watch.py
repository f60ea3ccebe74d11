"""The watch over a run: a stop asked of one process stops all, the end of one ends all.

Each process has a thread that tells the hub on process 0 once a second what the main thread does,
and hears from it. It needs no device and no collective, and it works while the main thread is in a
compiler, waits for data or hangs: signals reach it through a socket, and it can end the process.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
import time
import types
import typing
from collections.abc import Iterator

import jax

from nest_dist.base import failures
from nest_dist.parallel import hosts, hub, main_thread, stop_signals

# From the step on which all processes agreed to stop: long enough for a checkpoint.
STOP_SECONDS = 300.0
# How long a process that is asked to stop before it has met the others tries to tell them.
MEETING_SECONDS = 20.0
# How long a process whose collective failed waits to be told why.
REASON_SECONDS = hub.SILENT_SECONDS + 5


class Watch:
    """The watch of one process; a context manager around all that it does in a run.

    Before `begin`, a request to stop ends the run: there is nothing to save.
    """

    def __init__(self) -> None:
        """Takes over SIGTERM and SIGINT; call it in the main thread."""
        self._lock = threading.Condition()
        self._sending = threading.Lock()
        self._began = False
        self._ticks = 0
        self._holding = False
        self._stop_at: int | None = None
        self._stop_by = float("inf")
        self._interrupted = False
        self._stop_early = False  # asked to stop before the others have been met
        self._phase = "start"
        self._phase_since = time.monotonic()
        self._leaving = False  # in peace: the end of process 0's connection is then no surprise
        self._failing = False  # the main thread tells the cause itself
        self._told = threading.Event()  # the end was announced, and every other process is gone
        self._hub: hub.Hub | None = None
        self._connection: socket.socket | None = None
        self._index = 0
        self._signals = stop_signals.Listener(self._hear_signal)

    def connect(self, stuck_seconds: float = 600.0) -> None:
        """Joins the watch of the other processes; call it after `hosts.start`, on all of them.

        Args:
            stuck_seconds: how long training may stand still.
        Raises:
            PeerLost: if process 0 cannot be reached.
        """
        count, self._index = jax.process_count(), jax.process_index()
        if hosts.lead():
            self._hub = hub.Hub(count, stuck_seconds, only_here=count == 1)

        def place() -> str:
            assert self._hub is not None
            return json.dumps([self._hub.port, self._hub.token])

        port, token = json.loads(hosts.told(place))
        host = "127.0.0.1" if hosts.lead() else hosts.coordinator_host()
        try:
            connection = socket.create_connection((host, port), timeout=30)
            connection.sendall(hub.encode("hello", index=self._index, token=token))
        except OSError as error:
            raise failures.PeerLost(
                f"process {self._index} cannot reach process 0 at {host}:{port} "
                f"({failures.first_line(error)}); let the hosts of the run reach each other on all "
                "TCP ports."
            ) from None
        connection.settimeout(hub.PULSE_SECONDS / 2)
        with self._lock:
            self._connection = connection
        if self._stop_early:
            self._send("stop")
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def begin(self) -> None:
        """From here on a request to stop ends in a checkpoint, at a tick of all processes."""
        with self._lock:
            self._began = True
        self._enter("step")

    def tick(self) -> bool:
        """Whether all processes stop here; each calls it after the same things in the same order.

        While the processes agree on where to stop, this waits.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._holding or self._stop_at is not None)
            self._ticks += 1
            return self._stop_at is not None and self._ticks >= self._stop_at

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked of any process; the ticks say when it is."""
        return self._holding

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the main thread does while this is open, in a word or two."""
        before = self._phase
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: types.TracebackType | None,
    ) -> None:
        """Leaves the run together with the others.

        Raises:
            Interrupted: if it was Ctrl-C that stopped the run.
            PeerLost: if a collective failed and nobody could tell why.
        """
        if error is None or isinstance(error, failures.Preempted):
            self._leave_in_peace()
            if error is not None and self._interrupted:
                raise failures.Interrupted(str(error)) from None
            return
        if self._connection is None:
            return  # the others have not been met
        if _tells_of_lost_peer(error):
            # The hub knows more; the end that it announces is the end of this process, too.
            time.sleep(REASON_SECONDS)
            raise failures.PeerLost(
                f"another process of the run is gone ({failures.first_line(error)[:200]}); start "
                "all of them again, the run goes on from its last checkpoint."
            ) from error
        self._failing = True
        code = error.exit_code if isinstance(error, failures.Failure) else 1
        cause = failures.first_line(error)
        if not isinstance(error, failures.Failure):
            cause = f"{type(error).__name__}: {cause}"
        self._send("failed", code=code, cause=f"process {self._index}: {cause}")
        self._told.wait(hub.FAREWELL_SECONDS + 5)

    def _leave_in_peace(self) -> None:
        self._leaving = True
        self._send("bye")
        # Process 0 serves the others: were it gone first, they would end as if it had crashed.
        hosts.leave()
        if self._hub is not None:
            self._hub.close()

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_since = phase, time.monotonic()

    # What follows runs in threads beside the main one.

    def _run(self) -> None:
        connection, lines = self._connection, hub.Lines()
        assert connection is not None
        heard = pulsed = time.monotonic()
        while True:
            try:
                data = connection.recv(65536)
            except TimeoutError:
                data = None
            except OSError:
                data = b""
            now = time.monotonic()
            if data:
                heard = now
                for message in lines.feed(data):
                    self._hear(message)
            elif data == b"" or now - heard > hub.SILENT_SECONDS:
                if self._leaving or self._failing:
                    return
                how = "is gone" if data == b"" else f"has not answered for {now - heard:.0f} s"
                self._end(failures.PEER_LOST, f"process 0 {how}", 0)
            if now - pulsed > hub.PULSE_SECONDS:
                pulsed = now
                self._send(
                    "pulse",
                    tick=self._ticks,
                    phase=self._phase,
                    seconds=now - self._phase_since,
                    where=main_thread.place(),
                )
            if now > self._stop_by:
                self._end(
                    failures.PREEMPTED,
                    f"the stop took longer than {STOP_SECONDS:.0f} s ({self._phase}); the run goes "
                    "on from the checkpoint before",
                    self._index,
                )

    def _hear(self, message: hub.Message) -> None:
        if message["kind"] == "hold":
            with self._lock:
                self._holding = self._began
                self._send("at", tick=self._ticks if self._began else -1)
        elif message["kind"] == "stop_at":
            with self._lock:
                self._stop_at = message["tick"]
                self._stop_by = time.monotonic() + STOP_SECONDS
                self._lock.notify_all()
        elif message["kind"] == "end":
            if self._hub is not None:
                self._hub.farewell.wait(hub.FAREWELL_SECONDS)
            self._told.set()
            if not self._failing:
                self._end(message["code"], message["cause"], message["culprit"])

    def _end(self, code: int, cause: str, culprit: int) -> typing.NoReturn:
        """Ends this process with the cause that all give."""
        if code == failures.PEER_LOST:
            cause += "; start all processes again, the run goes on from its last checkpoint."
        _say(f"nest-dist: {cause}")
        if culprit == self._index and code == failures.PEER_LOST:
            with contextlib.suppress(OSError):
                faulthandler.dump_traceback(all_threads=True)
        if code == failures.PREEMPTED and self._interrupted:
            code = failures.INTERRUPTED
        failures.end_now(code)
        raise AssertionError("unreachable")

    def _send(self, kind: str, **fields: typing.Any) -> None:
        if self._connection is not None:
            # Whoever does not read will be missed.
            with self._sending, contextlib.suppress(OSError):
                self._connection.sendall(hub.encode(kind, **fields))

    def _hear_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupt()
        elif number == signal.SIGTERM:
            self._request_stop()

    def _interrupt(self) -> None:
        if self._interrupted:
            failures.end_now(failures.INTERRUPTED)
        self._interrupted = True
        if self._began:
            _say("\nnest-dist: saving a checkpoint, then stopping; Ctrl-C again stops now.")
        self._request_stop()

    def _request_stop(self) -> None:
        with self._lock:
            self._stop_early = self._connection is None
        if not self._stop_early:
            self._send("stop")
        elif self._interrupted:
            self._stop_alone()  # Ctrl-C reaches all processes of a terminal
        else:
            # The others would wait for a process that is gone. So it goes on to meet and tell them.
            timer = threading.Timer(MEETING_SECONDS, self._stop_alone)
            timer.daemon = True
            timer.start()

    def _stop_alone(self) -> None:
        if not self._began:
            self._end(failures.PREEMPTED, "asked to stop during the start: nothing to save", 0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a log on a full disk must not keep a process from its end
        os.write(2, text.encode() + b"\n")


def _tells_of_lost_peer(error: BaseException) -> bool:
    if isinstance(error, failures.Failure):
        return False
    if not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        return False
    text = str(error)
    return any(sign in text for sign in ("Gloo", "closed by peer", "heartbeat", "UNAVAILABLE"))
