"""Where files about a run are written before they lie in its folder.

A bucket holds whole objects: nothing can be appended there. So what grows is written on this host
and copied, whole, from time to time. A local folder is written as it is.
"""

import pathlib
import shutil
import sys
import tempfile
import threading
import typing
from collections.abc import Iterable

COPY_SECONDS = 60.0
METRICS = "metrics.jsonl"  # one line an entry; gone on with after a restart


class Desk:
    """A local folder, and its copy in the folder of the run; a context manager.

    Attributes:
        folder: to write in.
    """

    def __init__(
        self, workdir: typing.Any, bring: Iterable[str] = (), requests: Iterable[str] = ()
    ) -> None:
        """Brings what is continued.

        Args:
            workdir: of the run; a pathlib.Path if it is local.
            bring: names of files that are gone on with.
            requests: names of files that others put into the folder of the run, to be moved here.
        """
        self._there: typing.Any = None if isinstance(workdir, pathlib.Path) else workdir
        self._requests = tuple(requests)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}  # when, and how long it was
        self._copying = threading.Lock()
        self._closing = threading.Event()
        if self._there is None:
            self.folder = workdir
            return
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="nest_dist_desk_"))
        for name in bring:
            if (self._there / name).exists():
                (self.folder / name).write_bytes((self._there / name).read_bytes())
        self._thread = threading.Thread(target=self._copy_now_and_then, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        """Copies what is left."""
        if self._there is None:
            return
        self._closing.set()
        self._thread.join()
        self.copy()
        shutil.rmtree(self.folder, ignore_errors=True)

    def copy(self) -> None:
        """Copies what has changed, and takes requests; what the network refuses is done later."""
        if self._there is None:
            return
        try:
            with self._copying:
                for path in sorted(self.folder.rglob("*")):
                    self._copy(path)
                for name in self._requests:
                    if (self._there / name).exists():
                        (self._there / name).unlink()
                        (self.folder / name).touch()
        except Exception as error:  # whatever the library of buckets raises
            print(f"{self._there} lags behind: {error!r}", file=sys.stderr, flush=True)

    def _copy_now_and_then(self) -> None:
        while not self._closing.wait(COPY_SECONDS):
            self.copy()

    def _copy(self, path: pathlib.Path) -> None:
        if path.name in self._requests or path.suffix == ".new" or not path.is_file():
            return
        found = path.stat()
        mark = (found.st_mtime_ns, found.st_size)
        if self._copied.get(path) != mark:
            (self._there / str(path.relative_to(self.folder))).write_bytes(path.read_bytes())
            self._copied[path] = mark
