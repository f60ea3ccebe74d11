"""Ranges of bytes of files: local, or over http(s), by connections that stay open.

All remote files are read here, so here the cache lies in between.
"""

import dataclasses
import functools
import http
import os
import re
import typing

from nest_dist.base import failures
from nest_dist.data.sources import range_cache, traffic

if typing.TYPE_CHECKING:
    import requests

TIMEOUT_SECONDS = 30
CONNECTIONS = 32  # that stay open to a server


@dataclasses.dataclass(frozen=True)
class File:
    """A file that can be read in ranges."""

    name: str  # path or address
    # Header of requests to that address; never sent on to another server
    authorization: str | None = dataclasses.field(default=None, repr=False)
    size: int | None = None  # in bytes; None before the first read
    version: str | None = None  # the ETag, or the time of the last change; None likewise
    # Of what is remote; None keeps nothing
    cache: range_cache.Cache | None = dataclasses.field(default=None, compare=False)

    @property
    def is_remote(self) -> bool:
        """Whether the name is an address."""
        return "://" in self.name

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on, from the cache if it has them.

        Raises:
            BadInput: if this is no longer the file that it was.
            OSError: if it cannot be read.
        """
        if self.keeps and (kept := self.keeps.get(self._key(start, length))) is not None:
            traffic.here.add(cache_hits=1, cache_bytes=len(kept))
            return kept
        content, now = self._range(start, length)
        if now != self:
            raise failures.BadInput(
                f"{self.name} has changed since it was opened; start the run again."
            )
        if len(content) < min(length, (now.size or 0) - start):
            raise EOFError(f"{len(content)} of {length} bytes")
        self.keep(start, length, content)
        return content

    def keep(self, start: int, length: int, content: bytes) -> None:
        """Puts into the cache what `read` would give."""
        if self.keeps:
            self.keeps.put(self._key(start, length), content)

    @property
    def keeps(self) -> range_cache.Cache | None:
        """The cache of a remote file whose ETag says exactly which bytes it has."""
        is_exact = self.is_remote and self.version and not self.version.startswith("W/")
        return self.cache if is_exact else None

    def _key(self, start: int, length: int) -> str:
        return f"{self.name} {self.version} {self.size} {start} {length}"

    def now(self) -> "File":
        """The file with its size and version.

        Raises:
            OSError: if it cannot be read.
        """
        return self.tail(1)[1]

    def tail(self, length: int, known: "File | None" = None) -> tuple[bytes, "File"]:
        """The last bytes, and the file with its size and version.

        Args:
            known: of an earlier call; a file that has not changed since is given without bytes.
        Raises:
            OSError: if it cannot be read.
        """
        content, now = self._range(-length, length, known)
        return b"" if now == known else content, now

    def _range(self, start: int, length: int, known: "File | None" = None) -> tuple[bytes, "File"]:
        """Bytes from `start` on, counted from the end if negative, and the file as it is now."""
        if not self.is_remote:
            with open(self.name, "rb") as file:
                status = os.fstat(file.fileno())
                file.seek(start if start >= 0 else max(0, status.st_size + start))
                size, version = status.st_size, str(status.st_mtime_ns)
                return file.read(length), dataclasses.replace(self, size=size, version=version)
        headers = {
            "Range": f"bytes={start}-{start + length - 1}" if start >= 0 else f"bytes={start}",
            "Authorization": self.authorization,
            "If-None-Match": known.version if known else None,
        }
        with _session().get(
            self.name, headers=headers, timeout=TIMEOUT_SECONDS, stream=True
        ) as answer:
            if known and answer.status_code == http.HTTPStatus.NOT_MODIFIED:
                return b"", known
            answer.raise_for_status()
            sizes = re.fullmatch(r"bytes .*/(\d+)", answer.headers.get("Content-Range", ""))
            if not sizes:
                raise failures.BadInput(
                    f"the server of {self.name} answers no requests for ranges of bytes; copy "
                    "the file to this machine."
                )
            now = dataclasses.replace(self, size=int(sizes[1]), version=answer.headers.get("ETag"))
            content = answer.content
            traffic.here.add(requests=1, fetched_bytes=len(content))
            return content, now


@functools.cache
def _session() -> "requests.Session":
    try:
        import requests
    except ImportError:
        raise failures.BadInput(
            "files over http need another library; `pip install 'nest_dist[huggingface]'`."
        ) from None
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges are of the file as it is
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session
