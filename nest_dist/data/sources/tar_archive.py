"""The members of a tar archive, or of a tar of tars, by their headers alone.

Nothing is extracted: names of members become keys and class names, never paths. Headers may come
from anyone: their numbers are checked before they are believed.
"""

import dataclasses
import functools
import posixpath
import tarfile
import typing
from collections.abc import Iterator

from nest_dist.base import failures
from nest_dist.data.sources import byte_ranges, retries

COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}
SCAN_BYTES = 1 << 20  # also the longest header that is read
# Fetched at once: over a network nearly all, in few requests; of a local file the headers.
REMOTE_BYTES, LOCAL_BYTES = 4 << 20, 1 << 13


class Member(typing.NamedTuple):
    """Its name, such as "n01440764/n01440764_10026.JPEG", and where its bytes are in the file."""

    name: str
    offset: int
    size: int


class Reader:
    """A file that is read forwards, in small pieces, whatever a header says of its length.

    Attributes:
        storage: with its size.
    """

    def __init__(self, storage: byte_ranges.File) -> None:
        """Reads nothing but size and version.

        Raises:
            BadInput: as of `Retries`, like all methods.
        """
        self._trying = retries.Retries()
        self.storage = self._trying.run(storage.name, storage.now)
        # These pieces are of no use later.
        self._uncached = dataclasses.replace(self.storage, cache=None)
        self._block = REMOTE_BYTES if storage.is_remote else LOCAL_BYTES
        self._window, self._start, self._at = b"", 0, 0

    @property
    def size(self) -> int:
        """In bytes."""
        return self.storage.size or 0

    def seek(self, position: int) -> None:
        """Where `read` goes on."""
        self._at = position

    def tell(self) -> int:
        """Likewise."""
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """As of a file, for `tarfile`.

        Raises:
            OverflowError: if it is asked for more than `SCAN_BYTES`.
        """
        if size is None or not 0 <= size <= SCAN_BYTES:
            raise OverflowError(size)
        content = self.content(self._at, size)
        self._at += len(content)
        return content

    def content(self, start: int, size: int) -> bytes:
        """Some bytes, fewer at the end of the file."""
        stop, end = min(start + size, self.size), self._start + len(self._window)
        if start >= stop:
            return b""
        if not self._start <= start <= stop <= end:
            before = self._window[start - self._start :] if self._start <= start <= end else b""
            at = start + len(before)
            length = min(max(stop - at, self._block), self.size - at)
            read = functools.partial(self._uncached.read, at, length)
            self._window, self._start = before + self._trying.run(self.storage.name, read), start
        return self._window[start - self._start : stop - self._start]


def members(file: Reader) -> Iterator[tuple[Member, str]]:
    """The members of an archive but folders, also of the archives in the archive.

    With each comes why it is not read, if so. The name of an archive in the archive, without
    `.tar`, is the folder of its members.

    Raises:
        BadInput: if it is no tar archive, compressed, cut short or corrupt.
    """
    name, first_bytes = file.storage.name, file.content(0, 8)
    for signature, program in COMPRESSED.items():
        if first_bytes.startswith(signature):
            raise failures.BadInput(
                f"{name} is compressed, so its members cannot be read by their offset; "
                f"decompress it first: {program} {posixpath.basename(name)}"
            )
    for info in _members(file, 0, file.size, name):
        own, start = info.name, info.offset_data
        folder = own[: -len(".tar")] if own.lower().endswith(".tar") else ""
        refusal = _refusal(folder or own, info)
        if not folder or not info.isreg() or refusal:
            if refusal or not info.isdir():
                yield Member(own, start, info.size), refusal
            continue
        for inner in _members(file, start, start + info.size, f"{own} in {name}"):
            refusal = _refusal(inner.name, inner)
            if refusal or not inner.isdir():
                joined = posixpath.join(folder, inner.name)
                yield Member(joined, inner.offset_data, inner.size), refusal


def _refusal(name: str, info: tarfile.TarInfo) -> str:
    """Why a member is not read; empty if it may be."""
    if name.startswith("/") or {".", ".."} & set(name.split("/")):
        return "its name leaves the folder"
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse() or any(key.startswith("GNU.sparse.") for key in info.pax_headers):
        return "a sparse file"
    return "" if info.isreg() or info.isdir() else "a device or pipe"


def _members(file: Reader, start: int, end: int, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of the archive at [start, end) of a file."""

    def refusal(reason: str, at: int) -> failures.BadInput:
        return failures.BadInput(
            f"{name} is no complete tar archive: {reason} at byte {at - start} of {end - start}: "
            "it is cut short, corrupt, or several archives in one file; fetch it again."
        )

    at = start
    file.seek(start)
    try:
        archive = tarfile.TarFile(
            fileobj=typing.cast(typing.Any, file), encoding="utf-8", errors="surrogateescape"
        )
        while info := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # a million would take a gigabyte
            if info.size < 0 or archive.offset <= at:
                raise refusal("a header is corrupt", at)
            if archive.offset > end:
                raise refusal("a member reaches over the end", at)
            at = archive.offset
            info.name = _plain(info.name)
            yield info
        at = archive.offset
    except (OSError, failures.Failure):
        raise
    except OverflowError:
        raise refusal("a member reaches over the end", at) from None
    except Exception:  # of any kind, as headers may say anything
        raise refusal("a header is corrupt", at) from None
    if at + tarfile.BLOCKSIZE > end:
        raise refusal("it has no end", at)
    for offset in range(at, end, SCAN_BYTES):
        file.seek(offset)
        if file.read(min(SCAN_BYTES, end - offset)).strip(b"\0"):
            raise refusal("it has neither a member nor its end", at)


def _plain(name: str) -> str:
    """The name without `.` and doubled slashes; `..` and a leading slash stay, to be refused."""
    folders_and_file = (name for name in name.split("/") if name not in ("", "."))
    return ("/" if name.startswith("/") else "") + "/".join(folders_and_file)
