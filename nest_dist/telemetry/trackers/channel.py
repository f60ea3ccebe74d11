"""From a run to the process of its tracker: a bounded queue, and a thread that no step waits for.

What is wrong with a tracker costs a line of warning, never a step.
"""

import base64
import collections
import contextlib
import importlib.util
import json
import os
import pathlib
import secrets
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Mapping

import numpy as np

from nest_dist.base import failures, files
from nest_dist.cluster import secret
from nest_dist.config import run_json
from nest_dist.telemetry import pictures, records, trackers

NAME = "tracker.json"  # in the workdir
# Records that wait take at most so much memory; those that come then are left out.
QUEUE_BYTES = 64 << 20
SCALAR_BYTES = 256
# Between two attempts to start a process that has failed.
RETRY_SECONDS = 300.0
# At the end of a run, and of an attempt that may have to be gone soon.
CLOSE_SECONDS, STOP_SECONDS = 30.0, 5.0


def require(tracker: trackers.Tracker, in_bucket: bool) -> None:
    """Refuses a tracker that cannot work here."""
    name = type(tracker).__name__
    if importlib.util.find_spec(tracker.library) is None:
        raise failures.BadInput(
            f"Run.tracker is @{name}(), and {tracker.library} is not installed; pip install "
            f"'nest_dist[{tracker.library}]', or bind Run.tracker = None."
        )
    if in_bucket and tracker.needs_folder:
        raise failures.BadInput(
            f"{name} writes into the workdir, which is in a bucket, where no data base can be; "
            f"bind {name}.uri to a server."
        )


def key(folder: pathlib.Path) -> str | None:
    """The key of the run in a folder, made for its first attempt; None if it cannot be kept."""
    path = folder / NAME
    known = records.read(path, lambda data: str(files.parsed(data)["key"]))
    if known:
        return known
    new = secrets.token_hex(8)
    with records.tolerated(path):
        files.write_text_durably(path, json.dumps({"key": new}) + "\n")
        return new
    return None


class Channel:
    """Gives the records of an attempt to its tracker; a context manager."""

    def __init__(
        self,
        tracker: trackers.Tracker,
        identity: trackers.Identity,
        config: Mapping[str, trackers.Value],
        say: Callable[[str], None] = records.warn,
    ) -> None:
        """Starts the thread, which starts the process.

        Args:
            config: values by their names in gin.
        """
        self._name, self._say = type(tracker).__name__, say
        self._first = {
            "tracker": run_json.dump(tracker),
            "key": identity.key,
            "name": identity.name,
            "folder": str(identity.folder),
            "config": dict(config),
        }
        self._changed = threading.Condition()
        self._queue: collections.deque[tuple[int, Callable[[], object]]] = collections.deque()
        self._bytes = self._lost = 0
        self._sent = self._taken = 0  # by the process that serves now
        self._closing = self._complete = self._told = self._open = False
        self._answered = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        record = {"step": step, "scalars": dict(values)}
        self._put(SCALAR_BYTES * (1 + len(values)), lambda: record)

    def picture(
        self, step: int, name: str, sheet: Callable[[], np.ndarray], lossless: bool
    ) -> None:
        """Records a picture uint8 [H, W, 3], which the thread draws, as PNG or JPEG."""

        def record() -> object:
            data = base64.b64encode(pictures.encoded(sheet(), lossless)).decode()
            ending = "png" if lossless else "jpg"
            return {"step": step, "picture": name, "data": data, "ending": ending}

        self._put(pictures.PAGE_WIDTH**2 * 3, record)

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, cause: object, *_: object) -> None:
        """Sends the rest, for a limited time; without an error the run is complete."""
        with self._changed:
            self._closing, self._complete = True, cause is None
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS if self._complete else STOP_SECONDS)
        if late := self._thread.is_alive():
            self._told = True
            if self._process is not None:
                self._process.kill()
            self._thread.join(STOP_SECONDS)
        with self._changed:
            lost = self._lost + len(self._queue)
        if late or lost:
            reason = "did not end in time" if late else "failed or was slow"
            self._say(f"{self._name} {reason}: {lost} records were left out")

    def _put(self, size: int, record: Callable[[], object]) -> None:
        with self._changed:
            if self._bytes + size > QUEUE_BYTES:
                self._lost += 1
            else:
                self._bytes += size
                self._queue.append((size, record))
                self._changed.notify()

    def _next(self) -> Callable[[], object] | None:
        """The oldest record; None at the end of the run, or of the process."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing or not self._open)
            if not self._queue or not self._open:
                return None
            size, record = self._queue.popleft()
            self._bytes -= size
            return record

    def _run(self) -> None:
        while not self._served():
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, RETRY_SECONDS):
                    return

    def _served(self) -> bool:
        """Whether a process has taken all records; False if it failed."""
        self._answered.clear()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{trackers.__name__}.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: it for name, it in os.environ.items() if name != secret.VARIABLE},
            )
        except OSError as error:  # no memory, or no process
            self._warn(failures.cause(error))
            return False
        self._process, self._sent, self._taken = process, 0, 0
        replies = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
        replies.start()
        with contextlib.suppress(OSError), typing.cast(typing.BinaryIO, process.stdin) as pipe:
            self._feed(pipe)
        replies.join()
        with self._changed:
            self._lost += self._sent - self._taken
        if code := process.wait():
            self._warn(f"its process ended with {code}")
        return code == 0

    def _feed(self, pipe: typing.BinaryIO) -> None:
        """Sends records until the end."""
        self._send(pipe, self._first)
        self._answered.wait()
        while (record := self._next()) is not None:
            try:
                self._send(pipe, record())
            except BaseException:
                with self._changed:
                    self._lost += 1
                raise
            self._sent += 1
        if self._open:
            self._send(pipe, {"complete": self._complete})

    def _send(self, pipe: typing.BinaryIO, record: object) -> None:
        pipe.write(json.dumps(record).encode() + b"\n")
        pipe.flush()

    def _listen(self, replies: typing.BinaryIO) -> None:
        """Takes the replies of a process until its end."""
        for line in replies:
            with contextlib.suppress(ValueError):  # half a line of a process that was killed
                reply = json.loads(line)
                if "failed" in reply:
                    self._warn(reply["failed"])
                with self._changed:
                    self._open = self._open or "ready" in reply
                    self._taken += reply.get("taken", 0)
                    self._lost += reply.get("lost", 0)
                self._answered.set()
        with self._changed:
            self._open = False
            self._changed.notify()
        self._answered.set()

    def _warn(self, cause: str) -> None:
        """Says once what is wrong."""
        if not self._told:
            self._told = True
            self._say(f"{self._name} fails ({cause}); the run goes on without it, and tries again")
