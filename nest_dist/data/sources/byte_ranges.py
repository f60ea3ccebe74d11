"""Ranges of bytes of files: local, or over http(s), by connections that stay open."""

import dataclasses
import functools
import http
import os
import re

import requests

from nest_dist.base import failures

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

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on.

        Raises:
            BadInput: if this is no longer the file that it was.
            OSError: if it cannot be read.
        """
        content, now = self._range(start, length)
        if now != self:
            raise failures.BadInput(
                f"{self.name} has changed since it was opened; start the run again."
            )
        if len(content) < min(length, (now.size or 0) - start):
            raise EOFError(f"{len(content)} of {length} bytes")
        return content

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
        if "://" not in self.name:
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
            return answer.content, now


@functools.cache
def _session() -> requests.Session:
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges are of the file as it is
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session
