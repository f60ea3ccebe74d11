"""Parquet files by what their ends say, and pieces of them, without reading what they hold."""

import concurrent.futures
import dataclasses
import posixpath
from collections.abc import Sequence

import fsspec
import pyarrow
import pyarrow.parquet

from nest_dist.base import failures
from nest_dist.data.sources import retries

FOOTER_THREADS = 16
FOOTER_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class File:
    """A Parquet file and what its end says: rows, and bytes once decompressed."""

    name: str
    rows: int
    bytes: int

    def content(self) -> tuple[str, int, int]:
        """What tells it from another file, wherever it lies."""
        return posixpath.basename(self.name), self.rows, self.bytes


@dataclasses.dataclass(frozen=True)
class Piece:
    """Every so manieth row of a file: all, unless there are more virtual shards than files."""

    file: File
    part: int
    parts: int

    def __len__(self) -> int:
        return len(range(self.part, self.file.rows, self.parts))


def described(names: Sequence[str], trying: retries.Retries) -> tuple[File, ...]:
    """What the ends of files say, many read at a time.

    Args:
        names: paths or addresses.
        trying: how often a reading may fail.
    Raises:
        BadInput: if one is not there, empty or cut short.
        Unavailable: if the server fails again and again.
    """

    def read(name: str) -> File:
        file = trying.run(name, lambda: _footer(name))
        if not file.rows:
            raise failures.BadInput(f"{name} has no rows; leave it out of HuggingFace.files.")
        return file

    with concurrent.futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return tuple(pool.map(read, names))


def _footer(name: str) -> File:
    try:
        with fsspec.open(name, "rb", block_size=FOOTER_BYTES) as file:
            found = pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowInvalid as error:
        if "://" in name:
            raise  # perhaps the answer alone was cut short
        raise failures.BadInput(
            f"{name} is no whole Parquet file ({failures.first_line(error)[:120]}); fetch it again."
        ) from None
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    return File(name, found.num_rows, size)
