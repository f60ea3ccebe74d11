"""ArrayRecord, the production format: many pictures in few files, each found by its number.

`nest-dist prepare` writes FOLDER/SPLIT with shards and a manifest, which this reads. A record is a
fixed header, a key and the bytes of an encoded picture.
"""

import dataclasses
import json
import os
import pathlib
import struct
import typing
from collections.abc import Iterable, Mapping, Sequence

import gin
import grain
from array_record.python import array_record_module
from etils import epath

from nest_dist.base import checks, failures
from nest_dist.data import batch

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MAGIC = b"NDR1"
# Magic, length of the key, label; the key (UTF-8) and the picture follow.
HEADER = struct.Struct("<4sHI")
# One record a group makes random access cheap; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@gin.register
@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """Pictures that `nest-dist prepare` has written to FOLDER/SPLIT.

    Attributes:
        folder: its --output; local, or remote as far as the array_record library can.
        split: its --split.
    """

    folder: str
    split: str

    def __post_init__(self) -> None:
        checks.types(self)

    def open(self) -> "Records":
        """The files of the split, opened.

        Raises:
            BadInput: if the manifest is missing, newer, or does not fit the files.
        """
        root = epath.Path(self.folder).expanduser() / self.split
        manifest = read_manifest(root)
        paths = []
        for shard in manifest["shards"]:
            path = root / shard["name"]
            try:
                length = path.stat().length
            except OSError:
                raise failures.BadInput(
                    f"{path} is missing, {MANIFEST} lists it; run `nest-dist prepare` again."
                ) from None
            if length != shard["bytes"]:
                raise failures.BadInput(
                    f"{path} has {length} bytes, {MANIFEST} says {shard['bytes']}: it was cut "
                    "short or altered; run `nest-dist prepare` again or copy the file anew."
                )
            paths.append(os.fspath(path))
        return Records(open_files(paths), tuple(manifest["class_names"]), manifest["fingerprint"])


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Records by number.

    Attributes:
        files: all shards, as one sequence of bytes.
        class_names: the name of each label.
        fingerprint: the digest of all records, from the manifest.
    """

    files: typing.Any
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> batch.Example:
        key, label, picture = unpack(read(self.files, index))
        return {"image": picture, "label": label, "key": key}


def open_files(paths: Sequence[str]) -> typing.Any:
    """All records of some ArrayRecord files, in their order.

    Raises:
        BadInput: naming the first file that is damaged.
    """
    try:
        return grain.sources.ArrayRecordDataSource(list(paths))
    except (RuntimeError, ValueError) as error:
        for path in paths:
            try:
                grain.sources.ArrayRecordDataSource([path])
            except (RuntimeError, ValueError) as reason:
                raise failures.BadInput(
                    f"{path} is no whole ArrayRecord file ({failures.first_line(reason)[:120]}); "
                    "it was cut short or altered: make or copy it anew."
                ) from None
        raise failures.BadInput(failures.first_line(error)) from None


def read(files: typing.Any, index: int) -> bytes:
    """One record.

    Raises:
        Unreadable: if its checksum does not fit.
    """
    try:
        return files[index]
    except RuntimeError as error:
        raise batch.Unreadable(failures.first_line(error)[:200]) from None


def pack(key: str, label: int, picture: bytes) -> bytes:
    """The record of a picture."""
    name = key.encode()
    return HEADER.pack(MAGIC, len(name), label) + name + picture


def unpack(record: bytes) -> tuple[str, int, memoryview]:
    """Key, label and picture of a record; the picture is not copied.

    Raises:
        Unreadable: if it was not made by `pack`.
    """
    if len(record) < HEADER.size or record[:4] != MAGIC:
        raise batch.Unreadable(f"the record starts with {record[:4]!r}, not with {MAGIC!r}")
    _, length, label = HEADER.unpack_from(record)
    start = HEADER.size + length
    key = record[HEADER.size : start].decode(errors="replace")
    return key, label, memoryview(record)[start:]


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file whole: until it is complete it has another name."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()  # writes the index, without which nothing can be read
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def read_manifest(root: typing.Any) -> Mapping[str, typing.Any]:
    """What `nest-dist prepare` says about a split.

    Args:
        root: a folder, as a path with `/` and `read_text`.
    Raises:
        BadInput: if there is none, or it is newer than this program.
    """
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{path} cannot be read ({failures.first_line(error)}); give the --output of "
            "`nest-dist prepare` as ArrayRecord.folder and its --split as ArrayRecord.split, and "
            "run it to the end."
        ) from None
    if manifest["format_version"] > FORMAT_VERSION:
        raise failures.BadInput(
            f"{path} has format {manifest['format_version']}, this program reads up to "
            f"{FORMAT_VERSION}; use a newer nest_dist."
        )
    return manifest
