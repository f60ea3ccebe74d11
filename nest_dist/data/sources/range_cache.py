"""Ranges of remote files on a disk of this host: bounded, shared by its processes and runs.

A file holds one range, after its digest. Its name is a digest of address, ETag, size and range. So
the bytes of another version are never found. Whatever fails here costs a request, never a step.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import shutil
import time
import typing
from collections.abc import Iterator

from nest_dist.base import failures, files, settings
from nest_dist.base.checks import Within

DIGEST_BYTES = 16
LOCK, NEW = "total", "new"  # the first holds the bytes of all ranges
FREE_FRACTION = 0.05  # of the disk, which is left to others
ROOM_FRACTION = 0.1  # of the bound, which is made free at once
LOCK_SECONDS, LOOK_SECONDS = 5.0, 0.01
PAUSE_SECONDS = 60.0  # in which nothing is kept after a failure

_log = logging.getLogger(__name__)
_told: set[str] = set()
_paused_until: dict[pathlib.Path, float] = {}


@settings.register
class Cache:
    """Ranges of remote files that are kept on this host.

    Attributes:
        folder: that holds them, made if it is missing; None for the user's cache.
        max_bytes: of all of them together; what was used least recently makes room. A twentieth of
            the disk stays free in any case. 0 keeps nothing.
    """

    folder: str | None = None
    max_bytes: typing.Annotated[int, Within(0)] = 64 << 30

    def get(self, key: str) -> bytes | None:
        """The bytes that `put` has kept, if they are still there and intact."""
        if not self.max_bytes:
            return None
        path = self._path(key)
        try:
            with path.open("rb") as file:
                digest, content = file.read(DIGEST_BYTES), file.read()
            if _digest(content) != digest:
                path.unlink(missing_ok=True)
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell(error)
            return None
        with contextlib.suppress(OSError):  # removed meanwhile, or a folder of somebody else
            os.utime(path)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keeps bytes, where they fit."""
        folder, path, size = self._folder, self._path(key), DIGEST_BYTES + len(content)
        if size > self.max_bytes or time.monotonic() < _paused_until.get(folder, 0):
            return
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            with _locked(folder / LOCK) as counter:
                if path.exists():  # by another process, meanwhile
                    return
                self._count(counter, size)
                path.parent.mkdir(exist_ok=True)
                try:
                    # Who was killed while it wrote has left this name to the next one.
                    with (folder / NEW).open("wb") as file:
                        file.write(_digest(content))
                        file.write(content)
                    (folder / NEW).replace(path)
                except OSError:
                    (folder / NEW).unlink(missing_ok=True)
                    raise
        except OSError as error:
            _paused_until[folder] = time.monotonic() + PAUSE_SECONDS
            self._tell(error)

    def _count(self, counter: typing.IO[str], size: int) -> None:
        """Adds to the total, after making room.

        Raises:
            OSError: if there is none.
        """
        counter.seek(0)
        text = counter.read()
        total = int(text) if text.isdecimal() else None
        if total is None or total + size > self._limit(total):
            ranges = sorted(_ranges(self._folder))
            total = sum(each.bytes for each in ranges)
            if total + size > self._limit(total):
                keep = int(self._limit(total) * (1 - ROOM_FRACTION))
                for each in ranges:
                    if total + size <= keep:
                        break
                    each.path.unlink(missing_ok=True)
                    total -= each.bytes
            if total + size > self._limit(total):
                raise OSError("a twentieth of its disk must stay free")
        counter.seek(0)
        counter.truncate()
        counter.write(str(total + size))
        counter.flush()

    def _limit(self, total: int) -> int:
        """The most bytes that may be kept, where `total` are."""
        disk = shutil.disk_usage(self._folder)
        return min(self.max_bytes, total + disk.free - int(disk.total * FREE_FRACTION))

    @property
    def _folder(self) -> pathlib.Path:
        if self.folder is None:
            return files.user_cache("data")
        return pathlib.Path(self.folder).expanduser()

    def _path(self, key: str) -> pathlib.Path:
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        return self._folder / name[:2] / name[2:40]

    def _tell(self, error: OSError) -> None:
        folder = self._folder
        if str(folder) not in _told:
            _told.add(str(folder))
            _log.warning(
                "the cache %s does not work (%s); what is not kept is fetched again. Make room, "
                "or set Cache.folder",
                *(folder, failures.cause(error)),
            )


class _Range(typing.NamedTuple):
    """A file; they sort by the time of their last use."""

    used: int
    bytes: int
    path: pathlib.Path


def _ranges(folder: pathlib.Path) -> Iterator[_Range]:
    for inner in folder.iterdir():
        if not inner.is_dir():
            continue
        for entry in os.scandir(inner):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield _Range(status.st_mtime_ns, status.st_size, pathlib.Path(entry.path))


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[typing.IO[str]]:
    """The file, which this thread alone has; the lock falls with its process.

    Raises:
        OSError: if another one keeps it, or the disk has no locks.
    """
    with path.open("a+") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process does not release its lock") from None
                time.sleep(LOOK_SECONDS)
        yield file


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
