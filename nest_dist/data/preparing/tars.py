"""Pictures inside a tar archive, or a tar of tars, found once and then read by their place.

Nothing is extracted: names of members become keys and class names, never paths.
"""

import dataclasses
import functools
import hashlib
import pathlib
import posixpath
import tarfile
import typing
from collections.abc import Iterator

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.preparing import pictures
from nest_dist.data.sources import image_folder

COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}
SCAN_BYTES = 1 << 20


class Member(typing.NamedTuple):
    """A picture: its name, such as "n01440764/n01440764_10026.JPEG", and its place in the file."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """Pictures of an archive as a source.

    Attributes:
        path: of the archive.
        class_names: the name of each label.
        entries: each picture with its label.
    """

    path: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[Member, int], ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of all names and places."""
        return hashlib.sha256(repr(self.entries).encode(errors="replace")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> batch.Example:
        member, label = self.entries[index]
        try:
            with open(self.path, "rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise batch.Unreadable(f"{self.path}: {error.strerror}") from None
        return {"image": content, "label": label, "key": member.name}


def listed(path: pathlib.Path) -> tuple[list[Member], list[pictures.Remark]]:
    """The pictures of an archive in its order, and what else it holds.

    Raises:
        BadInput: if it is no tar archive, compressed, cut short or damaged.
    """
    found: list[Member] = []
    rejected: list[pictures.Remark] = []
    with path.open("rb") as file:
        first_bytes = file.read(8)
        for signature, program in COMPRESSED.items():
            if first_bytes.startswith(signature):
                raise failures.BadInput(
                    f"{path} is compressed, so its members cannot be read by their place; "
                    f"decompress it first: {program} {path.name}"
                )
        for name, member, reason in _walk(file, path):
            if not reason and member.isdir():
                continue
            if not reason and posixpath.splitext(name)[1].lower() not in image_folder.SUFFIXES:
                reason = "no picture by its name"
            if reason:
                rejected.append(pictures.Remark(name, "left out", reason))
            else:
                found.append(Member(name, member.offset_data, member.size))
    return found, rejected


def _walk(file: typing.BinaryIO, path: pathlib.Path) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """Name, header and why it is refused of each member, also of archives in the archive.

    Such an archive stands for the folder of its name without `.tar`.
    """
    for name, member in _members(file, 0, path.stat().st_size, str(path)):
        folder = name[: -len(".tar")] if name.lower().endswith(".tar") else ""
        reason = _refusal(folder or name, member)
        if not folder or reason:
            yield name, member, reason
            continue
        start = member.offset_data
        for inner, found in _members(file, start, start + member.size, f"{name} in {path}"):
            yield posixpath.join(folder, inner), found, _refusal(inner, found)


def _refusal(name: str, member: tarfile.TarInfo) -> str:
    """Why a member is not looked at; empty if it may be."""
    if name.startswith("/") or {".", ".."} & set(name.split("/")):
        return "its name leaves the folder"
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() and not member.isdir():
        return "a device or pipe"
    return "a sparse file" if member.issparse() else ""


def _members(
    file: typing.BinaryIO, start: int, end: int, what: str
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Names, cleaned of `./`, and headers of an archive that lies at [start, end) of a file."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if member.offset_data + (member.size if member.isreg() else 0) > end:
                    raise tarfile.ReadError("a member reaches over the end")
                name = member.name.encode(errors="surrogateescape").decode(errors="replace")
                yield _plain(name), member
            rest = archive.offset
    except tarfile.TarError as error:
        raise failures.BadInput(
            f"{what} is no whole tar archive ({failures.first_line(error)}); fetch it again."
        ) from None
    # tarfile takes a damaged header for the end; only zeros may follow the last member.
    file.seek(rest)
    if rest >= end or any(
        file.read(min(SCAN_BYTES, end - at)).strip(b"\0") for at in range(rest, end, SCAN_BYTES)
    ):
        raise failures.BadInput(
            f"{what} does not end after its last readable member, at byte {rest - start} of "
            f"{end - start}: it is cut short, damaged, or several archives in one file; fetch it "
            "again."
        )


def _plain(name: str) -> str:
    """The name without `.` and doubled slashes; `..` and a leading slash stay, to be refused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)
