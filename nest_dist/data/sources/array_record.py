"""ArrayRecord, the production format: many pictures in few files, read by index.

`nest-dist prepare` writes FOLDER/SPLIT with shards and a manifest. A record is a fixed header, a
key by which a person finds the picture, and the encoded picture.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import errno
import itertools
import os
import pathlib
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from array_record.python import array_record_module
from etils import epath

from nest_dist.base import failures, files, settings
from nest_dist.data import batch, manifest
from nest_dist.data.sources import all_labels

MAGIC = b"NDR2"
# Magic, length of the key, number of labels; the labels, the key (UTF-8) and the picture follow.
HEADER = struct.Struct("<4sHI")
OLD_MAGIC = b"NDR1"  # of version 0.1: one label in place of their number
UNKNOWN = 1 << 31  # marks a label: nobody knows whether the picture has this class
LONGEST_KEY = 0xFFFF
OPENING_THREADS = 16
BUFFER_BYTES = 1 << 15  # that a reader holds
# Without reading ahead, an error belongs to the record that is read.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# One record a group makes random access cheap; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"


@settings.register
class ArrayRecord:
    """Pictures that `nest-dist prepare` has written to FOLDER/SPLIT.

    Attributes:
        folder: its --output; local, or remote if the array_record library can read it.
        split: its --split.
    """

    folder: str
    split: str

    def open(self) -> "Records":
        """The open files of the split.

        Raises:
            BadInput: if the manifest is missing, newer, or does not fit the names and sizes of the
            files.
        """
        root = epath.Path(self.folder).expanduser() / self.split
        split = manifest.read(root)
        paths, lengths = [], []
        for shard in split.shards:
            path = root / shard.name
            try:
                length = path.stat().length
            except FileNotFoundError:
                raise failures.BadInput(
                    f"{path} is missing, {manifest.NAME} lists it; run `nest-dist prepare` again."
                ) from None
            if length != shard.bytes:
                raise failures.BadInput(
                    f"{path} has {length} bytes, {manifest.NAME} says {shard.bytes}: it was cut "
                    "short or altered; run `nest-dist prepare` again or copy the file anew."
                )
            paths.append(os.fspath(path))
            lengths.append(shard.records)
        counts = tuple(split.classes.values())
        return Records(Files(paths, lengths), tuple(split.classes), split.fingerprint, counts)


@dataclasses.dataclass(frozen=True, eq=False)
class Records(batch.Source):
    """Records by index."""

    files: Sequence[bytes]  # the records of all shards, in order
    class_names: tuple[str, ...]
    fingerprint: str
    counts: tuple[int, ...]  # of the records of each class

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> batch.Example:
        key, labels, picture = unpack(self.files[index])
        if any(label & UNKNOWN for label in labels):
            return batch.labelled(picture, parted(labels), key)
        return {"image": picture, "labels": labels, "key": key}

    def class_counts(self) -> tuple[int, ...]:
        return self.counts

    def read_labels(self) -> np.ndarray | None:
        """As of `Source`."""
        return all_labels.read_once(self)


class Files(Sequence[bytes]):
    """The records of some files, in order; a file is opened when it is first read."""

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]) -> None:
        self._paths, self._lengths = paths, lengths
        self._ends = list(itertools.accumulate(lengths))
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # no slices
        """A record.

        Raises:
            BadInput: if the file is corrupt, or has another number of records.
            Corrupt: if its checksum does not fit.
            OSError: if the system cannot read it.
        """
        number = bisect.bisect_right(self._ends, index)
        try:
            with self._lock:
                if number not in self._readers:
                    self._readers[number] = _opened(self._paths[number], self._lengths[number])
                reader = self._readers[number]
            with _reading():
                (record,) = reader.read([index - self._ends[number] + self._lengths[number]])
            return record
        except batch.Corrupt as reason:
            if reader.num_records():
                raise
            raise _incomplete(self._paths[number], reason) from None
        except OSError:
            # A reader that failed once fails for ever, and a table of files may be full.
            with self._lock:
                self._readers = {}
            raise

    def __reduce__(self) -> tuple[type["Files"], tuple[Sequence[str], Sequence[int]]]:
        return Files, (self._paths, self._lengths)


def pack(
    key: str, labels: Sequence[int], picture: batch.Encoded, unknown: Sequence[int] = ()
) -> bytes:
    """The record of a picture; `unknown` as of `batch.Example`."""
    labels = [*labels, *(label | UNKNOWN for label in unknown)]
    name = key.encode(errors="surrogateescape")[:LONGEST_KEY]
    header = HEADER.pack(MAGIC, len(name), len(labels))
    return header + struct.pack(f"<{len(labels)}I", *labels) + name + picture


def unpack(record: bytes) -> tuple[str, tuple[int, ...], memoryview]:
    """Key, labels and picture of a record; the picture is not copied.

    Labels with the mark `UNKNOWN` come last; `parted` takes them apart.

    Raises:
        Corrupt: if it was not made by `pack`.
    """
    if len(record) < HEADER.size or record[:4] not in (MAGIC, OLD_MAGIC):
        raise batch.Corrupt(f"the record starts with {record[:4]!r}, not with {MAGIC!r}")
    magic, length, count = HEADER.unpack_from(record)
    labels, start = (count,), HEADER.size
    if magic == MAGIC:
        start += 4 * count
        if len(record) < start:
            raise batch.Corrupt(f"the record announces {count} labels and has {len(record)} bytes")
        labels = struct.unpack_from(f"<{count}I", record, HEADER.size)
    key = record[start : start + length].decode(errors="surrogateescape")
    return key, labels, memoryview(record)[start + length :]


def parted(labels: Sequence[int]) -> batch.ClassSet:
    """The labels of a record, and those with the mark, without it."""
    known = tuple(label for label in labels if not label & UNKNOWN)
    return batch.ClassSet(known, tuple(it ^ UNKNOWN for it in labels if it & UNKNOWN))


def digest_one(update: Callable[[bytes], object], record: bytes) -> None:
    """Updates the digest of the records of a file with one record and its length."""
    update(len(record).to_bytes(8, "little"))
    update(record)


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file, which has another name until it is complete."""

    def fill(partial: pathlib.Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for record in records:
                _checked(writer.write, record)
        finally:
            _checked(writer.close)  # writes the index, without which nothing can be read

    files.write_durably(path, fill)


def open_files(paths: Sequence[str]) -> Files:
    """The records of some files, in order.

    Raises:
        BadInput: naming the first file that is corrupt.
    """
    with concurrent.futures.ThreadPoolExecutor(OPENING_THREADS) as pool:
        return Files(paths, list(pool.map(_length, paths)))


def _length(path: str) -> int:
    try:
        with contextlib.closing(_opened(path)) as reader, _reading():
            return int(reader.num_records())
    except batch.Corrupt as reason:
        raise _incomplete(path, reason) from None


def _opened(path: str, length: int | None = None) -> array_record_module.ArrayRecordReader:
    """The reader of a file, which has so many records.

    Raises:
        BadInput: if it is corrupt, or has others.
        OSError: if the system cannot read it.
    """
    try:
        with _reading():
            reader = array_record_module.ArrayRecordReader(
                path, READER_OPTIONS, file_reader_buffer_size=BUFFER_BYTES
            )
            # One that cannot be opened has none, and says why when it is read.
            if length and reader.num_records() not in (0, length):
                raise batch.Corrupt(f"it has {reader.num_records()} records, not {length}")
    except batch.Corrupt as reason:
        raise _incomplete(path, reason) from None
    return reader


def _incomplete(path: str, reason: object) -> failures.BadInput:
    return failures.BadInput(
        f"{path} is no complete ArrayRecord file ({reason}); it was cut short or altered: make or "
        "copy it anew."
    )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Tells trouble of the system, which the library names by its function, from damage."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text = failures.first_line(error)[:200]
        if failed := re.match(r"\w+\(\) failed: ([^;]*)(?:; \w+ (.*))?", text):
            codes = {os.strerror(code): code for code in errno.errorcode}
            raise OSError(codes.get(failed[1], errno.EIO), failed[1], failed[2]) from None
        raise batch.Corrupt(text) from None


def _checked(method: Callable[..., object], *arguments: bytes) -> None:
    try:
        method(*arguments)
    except RuntimeError as error:
        raise OSError(errno.EIO, failures.first_line(error)[:200]) from None
