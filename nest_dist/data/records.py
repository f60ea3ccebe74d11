"""One record of a prepared data set, and the ArrayRecord files that hold many.

A record is a fixed header, a key by which a person finds the picture, and the encoded picture.
"""

import errno
import pathlib
import struct
import typing
from collections.abc import Iterable

from array_record.python import array_record_module

from nest_dist.base import failures, files
from nest_dist.data import batch

MAGIC = b"NDR1"
# Magic, length of the key, label; the key (UTF-8) and the picture follow.
HEADER = struct.Struct("<4sHI")
LONGEST_KEY = 0xFFFF
# One record a group makes random access cheap; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


def pack(key: str, label: int, picture: bytes | bytearray | memoryview) -> bytes:
    """The record of a picture."""
    name = key.encode(errors="surrogateescape")[:LONGEST_KEY]
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


def digest_one(digest: typing.Any, record: bytes) -> None:
    """Adds a record to the sha256 of the records of a file."""
    digest.update(len(record).to_bytes(8, "little"))
    digest.update(record)


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file whole: until it is complete it has another name.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """

    def fill(partial: pathlib.Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for record in records:
                _checked(writer.write, record)
        finally:
            _checked(writer.close)  # writes the index, without which nothing can be read

    files.write_whole(path, fill)


class Reader:
    """The records of one file, by number."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file.

        Raises:
            Unreadable: if it is no whole ArrayRecord file.
        """
        # Without reading ahead, damage is met at the record that has it.
        options = "readahead_buffer_size:0,max_parallelism:0"
        try:
            self._reader = array_record_module.ArrayRecordReader(str(path), options)
        except RuntimeError as error:
            raise batch.Unreadable(failures.first_line(error)[:200]) from None

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, index: int) -> bytes:
        try:
            (record,) = self._reader.read([index])
        except RuntimeError as error:
            raise batch.Unreadable(failures.first_line(error)[:200]) from None
        return record

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()


def _checked(method, *arguments):  # type: ignore[no-untyped-def]
    try:
        return method(*arguments)
    except RuntimeError as error:
        raise OSError(errno.EIO, failures.first_line(error)[:200]) from None
