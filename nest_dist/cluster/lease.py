"""One run in one workdir: the lease that a run holds on its folder.

The primary process keeps WORKDIR/lease.json: id of the run, host, process and a beat. On a file
system the file is locked, and the lock falls with the process. Where a lock does not reach, another
host or a bucket, a lease counts as given up when its beat has stood still for `STILL_SECONDS`.
Clocks of hosts are never compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
import typing

from etils import epath

from nest_dist.base import failures, files
from nest_dist.cluster import processes

NAME = "lease.json"
BEAT_SECONDS = 5.0
STILL_SECONDS = 30.0
# A killed process may need this long until the system has closed its files.
DYING_SECONDS = 2.0

Record = dict[str, typing.Any]  # JSON; empty when the lease is free


class Lost(failures.BadInput):
    """The folder is gone, or belongs to another run; nothing may be written any more."""


class Lease:
    """A context manager around all that a run writes; all processes enter it together."""

    def __init__(self, workdir: epath.PathLike) -> None:
        """Of the folder of a run, which exists; also gs://."""
        self._workdir = workdir
        self._store: _File | _Object
        if "://" in os.fspath(workdir):
            self._store = _Object(epath.Path(workdir) / NAME)
        else:
            self._store = _File(pathlib.Path(workdir) / NAME)
        # Containers on one machine have different hosts and the same kernel.
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
        self._own: Record = {
            "run": secrets.token_hex(8),
            "host": socket.gethostname(),
            "kernel": boot.read_text().strip() if boot.exists() else socket.gethostname(),
            "process": os.getpid(),
            "beat": 0,
        }
        self._accessing = threading.Lock()  # a record that is half replaced looks foreign
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Takes the lease; waits until a lease of another host has stood still.

        Raises:
            BadInput: if another run holds it, or the folder cannot be written.
            Unavailable: if another run takes it at the same time.
            OSError: if the storage fails.
        """
        try:
            processes.broadcast(lambda: files.again(self._take))
        except FileExistsError:
            raise failures.Unavailable(
                f"{self._workdir} was taken by another run a moment ago; end one of the two."
            ) from None
        except OSError as error:
            if error.errno in failures.TROUBLE:
                raise
            raise failures.BadInput(
                f"{self._workdir}/{NAME} cannot be written ({error.strerror}); make room, or give "
                "another --workdir."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
            with contextlib.suppress(Exception):  # another failure may be under way
                self._replace({})
        self._store.close()

    def require_held(self) -> None:
        """Checks on the primary process that this run may still write.

        Raises:
            Lost: if the folder is gone, or another run has taken the lease over.
        """
        with self._accessing:
            record = self._store.read()
        if record is None:
            raise Lost(
                f"{self._workdir} has lost its {NAME}: it was removed, renamed or unmounted under "
                "the run, and nothing more is written; bring it back and start the run again."
            )
        if record.get("run") != self._own["run"]:
            raise Lost(
                f"{self._workdir} was taken over by {_holder(record)}, since this run stood still "
                "for too long; end one of the two."
            )

    def _take(self) -> None:
        limit = time.monotonic() + DYING_SECONDS
        while not self._store.lock():
            if time.monotonic() > limit:
                self._refuse(self._store.read() or {})
            time.sleep(0.1)
        record = self._store.read() or {}
        if record and not (self._store.locked and record.get("kernel") == self._own["kernel"]):
            self._wait_until_still(record)
        self._store.write(self._own)
        self._thread.start()

    def _wait_until_still(self, record: Record) -> None:
        print(
            f"{self._workdir} was used by {_holder(record)}; waiting {STILL_SECONDS:.0f} s to see "
            "whether that run goes on",
            flush=True,
        )
        limit = time.monotonic() + STILL_SECONDS
        while time.monotonic() < limit:
            time.sleep(BEAT_SECONDS / 5)
            if (now := self._store.read() or {}) not in ({}, record):
                self._refuse(now)

    def _refuse(self, record: Record) -> typing.NoReturn:
        raise failures.BadInput(
            f"--workdir is {self._workdir}, which is in use by {_holder(record)}; wait for its "
            "end, end it, or give another --workdir."
        )

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._own["beat"] += 1
            with contextlib.suppress(Exception):  # what is wrong is told at the next save
                self._replace(self._own)

    def _replace(self, record: Record) -> None:
        self.require_held()
        with self._accessing:
            self._store.write(record)


class _File:
    """The record in a file, replaced in place: a lock belongs to the file and not to its name.

    Attributes:
        locked: whether the file is locked; some storage has no locks.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._descriptor, self.locked = path, -1, False

    def lock(self) -> bool:
        """Whether nobody else holds the lock."""
        self.close()
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked = True
        except BlockingIOError:
            return False
        except OSError:  # this storage has no locks
            pass
        # The holder before may have given the file back since it was opened.
        opened = os.fstat(self._descriptor)
        return self._path.exists() and os.path.samestat(opened, self._path.stat())

    def read(self) -> Record | None:
        """The record under the path; None if the file is gone."""
        return _parsed(files.patiently(self._path, self._path.read_bytes))

    def write(self, record: Record) -> None:
        """Replaces the record; an empty one gives the file back."""
        if record:
            text = json.dumps(record).encode()
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
            os.fsync(self._descriptor)
        else:
            self._path.unlink()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class _Object:
    """The record in an object of a bucket; it is replaced only where nobody else has done so."""

    locked = False

    def __init__(self, path: epath.Path) -> None:
        import fsspec

        self._path, self._files, self._generation = path, fsspec.filesystem("gs"), "0"
        self._bucket, _, self._key = os.fspath(path).removeprefix("gs://").partition("/")

    def lock(self) -> bool:
        """True: a bucket has preconditions in place of locks."""
        return True

    def read(self) -> Record | None:
        """The record; None if there is none. `write` replaces what was read first, or written."""
        path = f"{self._bucket}/{self._key}"
        if (status := files.patiently(self._path, lambda: self._files.info(path))) is None:
            return None
        if self._generation == "0":
            self._generation = status["generation"]
        return _parsed(files.patiently(self._path, self._path.read_bytes))

    def write(self, record: Record) -> None:
        """Replaces the record.

        Raises:
            FileExistsError: if another run has done so.
        """
        self._generation = self._files.call(
            "POST",
            self._files.base.replace("/storage/", "/upload/storage/", 1) + "b/{}/o",
            self._bucket,
            uploadType="media",
            name=self._key,
            ifGenerationMatch=self._generation,
            data=json.dumps(record).encode(),
            json_out=True,
        )["generation"]

    def close(self) -> None:
        """Nothing to do."""


def _parsed(text: bytes | None) -> Record | None:
    """A record; empty if a power cut or another program has left something else."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        record = files.parsed(text)
        if isinstance(record, dict):
            return record
    return {}


def _holder(record: Record) -> str:
    known = "host" in record and "process" in record
    return f"process {record['process']} on {record['host']}" if known else "another run"
