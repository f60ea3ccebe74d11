"""Pictures inside a tar archive, or a tar of tars: listed once, then read by their offset.

Nothing is extracted: names of members become keys and class names, never paths. Headers may come
from anyone: their numbers are checked before they are believed.
"""

import dataclasses
import io
import pathlib
import posixpath
import tarfile
import typing
from collections.abc import Iterator

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.sources import image_folder

COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}
SCAN_BYTES = 1 << 20  # also the longest header that is read


class Member(typing.NamedTuple):
    """A picture: its name, such as "n01440764/n01440764_10026.JPEG", and its bytes in the file."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Members(batch.Source):
    """Pictures of an archive as a source, each with its label or its set of classes."""

    path: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[Member, int | batch.ClassSet], ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> batch.Example:
        member, label = self.entries[index]
        with open(self.path, "rb") as file:
            file.seek(member.offset)
            return batch.labelled(file.read(member.size), label, member.name)


def listed(path: pathlib.Path) -> tuple[list[Member], list[image_folder.PassedOver]]:
    """The pictures of an archive in its order, and its other members.

    Raises:
        BadInput: if it is no tar archive, compressed, cut short or corrupt.
    """
    members: list[Member] = []
    passed_over: list[image_folder.PassedOver] = []
    with _Headers(path) as file:
        first_bytes = file.read(8)
        for signature, program in COMPRESSED.items():
            if first_bytes.startswith(signature):
                raise failures.BadInput(
                    f"{path} is compressed, so its members cannot be read by their offset; "
                    f"decompress it first: {program} {path.name}"
                )
        for member, refusal in _walk(file, path):
            if refusal := refusal or image_folder.why_passed_over(member.name):
                passed_over.append(image_folder.PassedOver(member.name, refusal))
            else:
                members.append(member)
    return members, passed_over


class _Headers(io.FileIO):
    """A file that is read in small pieces, whatever a header says of its length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= SCAN_BYTES:
            raise OverflowError(size)
        return super().read(size)


def _walk(file: _Headers, path: pathlib.Path) -> Iterator[tuple[Member, str]]:
    """The members of an archive but folders, also of the archives in the archive.

    With each comes why it is not read, if so. The name of an archive in the archive, without
    `.tar`, is the folder of its members.
    """
    for info in _members(file, 0, path.stat().st_size, str(path)):
        name, start = info.name, info.offset_data
        folder = name[: -len(".tar")] if name.lower().endswith(".tar") else ""
        refusal = _refusal(folder or name, info)
        if not folder or not info.isreg() or refusal:
            if refusal or not info.isdir():
                yield Member(name, start, info.size), refusal
            continue
        for inner in _members(file, start, start + info.size, f"{name} in {path}"):
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


def _members(file: _Headers, start: int, end: int, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of the archive at [start, end) of a file."""

    def refusal(reason: str, at: int) -> failures.BadInput:
        return failures.BadInput(
            f"{name} is no complete tar archive: {reason} at byte {at - start} of {end - start}: "
            "it is cut short, corrupt, or several archives in one file; fetch it again."
        )

    at = start
    file.seek(start)
    try:
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
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
