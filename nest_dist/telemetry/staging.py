"""A local staging folder for the files of a run in a bucket.

An object of a bucket cannot grow. So files that grow are written on this host, and copied as new
objects from time to time. A run in a local folder needs no staging.
"""

import pathlib
import sys
import threading
from collections.abc import Iterable

from nest_dist.base import files, scratch
from nest_dist.config import workdir as workdirs

COPY_SECONDS = 60.0
METRICS = "metrics.jsonl"  # one line an entry; a restart continues it


class StagingFolder:
    """A local folder that is copied to the bucket of a run; a context manager.

    Attributes:
        folder: to write to; the folder of the run itself if that is local.
    """

    def __init__(
        self, workdir: workdirs.Folder, fetch: Iterable[str] = (), requests: Iterable[str] = ()
    ) -> None:
        """Fetches the files to which the run appends; removes what killed processes have left.

        Args:
            requests: names of files that a user puts into the bucket; they are moved here.
        """
        self._bucket: workdirs.Folder = None if isinstance(workdir, pathlib.Path) else workdir
        self._requests = tuple(requests)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # time of change, size
        self._copying = threading.Lock()
        self._closing = threading.Event()
        scratch.remove_leftovers()
        if self._bucket is None:
            self.folder = workdir
            return
        self._scratch = scratch.Scratch()
        self.folder = self._scratch.folder
        for name in fetch:
            if (self._bucket / name).exists():
                (self.folder / name).write_bytes((self._bucket / name).read_bytes())
        self._thread = threading.Thread(target=self._copy_periodically, daemon=True)
        self._thread.start()

    def __enter__(self) -> "StagingFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bucket is not None:
            self._closing.set()
            self._thread.join()
            self.copy()
            self._scratch.remove()

    def copy(self) -> None:
        """Copies changed files and moves requests; a later call repeats what an error prevented."""
        if self._bucket is None:
            return
        try:
            with self._copying:
                for path in sorted(self.folder.rglob("*")):
                    self._copy(path)
                for name in self._requests:
                    if (self._bucket / name).exists():
                        (self._bucket / name).unlink()
                        (self.folder / name).touch()
        except Exception as error:  # the library of buckets raises errors of any class
            print(f"{self._bucket} lags behind: {error!r}", file=sys.stderr, flush=True)

    def _copy_periodically(self) -> None:
        while not self._closing.wait(COPY_SECONDS):
            self.copy()

    def _copy(self, path: pathlib.Path) -> None:
        if path.name in self._requests or path.suffix == files.UNFINISHED or not path.is_file():
            return
        status = path.stat()
        mark = (status.st_mtime_ns, status.st_size)
        if self._copied.get(path) != mark:
            (self._bucket / str(path.relative_to(self.folder))).write_bytes(path.read_bytes())
            self._copied[path] = mark
