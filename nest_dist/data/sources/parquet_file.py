"""One Parquet file: its footer says where a row group lies, which is fetched as a whole.

Nothing in a file is ever run.
"""

import dataclasses
import functools
import json
import mmap
import typing
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet
from pyarrow import compute, types

from nest_dist.base import failures
from nest_dist.data.sources import byte_ranges, retries

TAIL_BYTES = 1 << 16  # in which a footer usually fits
JOINED_BYTES = 1 << 16  # a gap between columns that is read along, rather than asking twice


@dataclasses.dataclass(frozen=True)
class File:
    """A Parquet file whose footer has been read."""

    storage: byte_ranges.File
    footer: bytes
    trying: retries.Retries  # again, where the storage has trouble

    @property
    def name(self) -> str:
        return self.storage.name

    @functools.cached_property
    def metadata(self) -> pyarrow.parquet.FileMetaData:
        return pyarrow.parquet.read_metadata(pyarrow.BufferReader(self.footer))

    @functools.cached_property
    def schema(self) -> pyarrow.Schema:
        return self.metadata.schema.to_arrow_schema()

    def chunks(self, group: int, columns: Sequence[str]) -> list[typing.Any]:
        """What the footer says of the columns, or of the fields in them, in a row group."""
        row_group, roots = self.metadata.row_group(group), tuple(f"{it}." for it in columns)
        paths = enumerate(self._paths)  # the same in each row group
        return [row_group.column(number) for number, path in paths if path.startswith(roots)]

    @functools.cached_property
    def _paths(self) -> tuple[str, ...]:
        """The path of each stored column, with a dot after it."""
        schema = self.metadata.schema
        return tuple(f"{schema.column(number).path}." for number in range(len(schema)))

    def read(self, group: int, columns: Sequence[str]) -> pyarrow.Table:
        """Some columns of a row group, fetched with as few requests as their bytes allow.

        Raises:
            BadInput: if they are corrupt.
            Unavailable: if the storage fails again and again.
        """
        spans: list[list[int]] = []
        for chunk in self.chunks(group, columns):
            offsets = chunk.dictionary_page_offset, chunk.data_page_offset
            start = min(offset for offset in offsets if offset)
            stop = start + chunk.total_compressed_size
            if spans and 0 <= start - spans[-1][1] <= JOINED_BYTES:
                spans[-1][1] = stop
            else:
                spans.append([start, stop])
        # As long as the file; only what is written to it takes memory.
        content = mmap.mmap(-1, self.storage.size or 0)
        for start, stop in spans:
            read = functools.partial(self.storage.read, start, stop - start)
            content[start:stop] = self.trying.run(self.name, read)
        try:
            source = pyarrow.BufferReader(pyarrow.py_buffer(content))
            reader = pyarrow.parquet.ParquetFile(source, metadata=self.metadata)
            return reader.read_row_group(group, list(columns), use_threads=False)
        except (OSError, ValueError) as error:
            raise failures.BadInput(
                f"{self.name} is corrupt in row group {group} "
                f"({failures.first_line(error)[:120]}); fetch it again."
            ) from None

    def labels(self, column: str) -> set[typing.Any]:
        """The labels in all row groups, or those among which their numbers lie.

        Raises:
            BadInput: if a row has none.
        """
        groups = range(self.metadata.num_row_groups)
        filled = [it for it in groups if self.metadata.row_group(it).num_rows]
        return set().union(*(self._labels(group, column) for group in filled))

    def _labels(self, group: int, column: str) -> set[typing.Any]:
        """Those of a row group.

        The footer may hold the smallest and the largest number; else the column is read.
        """
        (chunk,) = self.chunks(group, (column,))
        known, kind = chunk.statistics, self.schema.field(column).type
        if types.is_integer(kind) and known and known.has_min_max:
            values, missing = {known.min, known.max}, known.null_count or 0
        else:
            read = self.read(group, (column,)).column(column)
            missing = read.null_count
            if is_list(kind):
                read = compute.list_flatten(read)
                missing += read.null_count
            values = set(read.unique().drop_null().to_pylist())
        if missing:
            raise self.without_label(missing, column)
        return values

    def stored_names(self, column: str) -> tuple[str, ...]:
        """The names of classes that the Hub's library stores beside the data."""
        try:
            features = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
            feature = features[column]
            if is_list(self.schema.field(column).type):  # of versions 2, and of 3 and 4
                feature = feature[0] if isinstance(feature, list) else feature["feature"]
            return tuple(map(str, feature["names"]))
        except (TypeError, LookupError, ValueError):
            return ()

    def without_label(self, count: int, column: str) -> failures.BadInput:
        return failures.BadInput(
            f"{self.name} has {count} rows without a value in column {column!r}; leave them out, "
            "or give another column."
        )


# By the name of a file: footers that this process has read, until the file changes.
_opened: dict[str, File] = {}


def opened(storage: byte_ranges.File, trying: retries.Retries) -> File:
    """The file, after reading its footer, or asking whether it is still the same.

    Raises:
        BadInput: if it is no Parquet file.
        Unavailable: if the storage fails again and again.
    """
    name, known = storage.name, _opened.get(storage.name)
    before = known.storage if known else None
    tail, now = trying.run(name, lambda: storage.tail(TAIL_BYTES, before))
    if known and now == before:
        kept = dataclasses.replace(known.storage, cache=storage.cache)
        return dataclasses.replace(known, storage=kept, trying=trying)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= (now.size or 0):
        tail, now = trying.run(name, lambda: storage.tail(length))
    file = File(now, tail[-length:], trying)
    try:
        file.schema  # noqa: B018  # parsed now
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{name} is no complete Parquet file ({failures.first_line(error)[:120]}); fetch it "
            "again."
        ) from None
    _opened[name] = file
    return file


def is_bytes(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are encoded pictures."""
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def is_list(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are sets of classes."""
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def of_items(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of the items of a list; any other type as it is."""
    return kind.value_type if is_list(kind) else kind


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are names of classes."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
