"""Pictures in Parquet: of a folder, over http, or of the Hugging Face Hub.

The footers of the files say which rows are in which row group. So an example is found by its
number. A row group stays in memory for as long as its window is read.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import posixpath
import typing
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow
from pyarrow import types

from nest_dist.base import checks, failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.data import batch, classes
from nest_dist.data.sources import named_splits, parquet_file, range_cache, retries, row_cache

SUFFIX = ".parquet"
THREADS = 16  # that read footers


@settings.register
class Parquet:
    """A split of a data set in Parquet files.

    Attributes:
        files: paths, patterns of paths, http(s) addresses, folders, or data sets of the Hub as
            hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Of a folder or a data set those files are
            taken whose names say the split. A path that exists is meant literally.
        split: such as "train".
        virtual_shards: contiguous pieces of a batch, each with a sequence of its own. Processes
            that divide them read each row group once.
        window: row groups of a virtual shard that are shuffled together.
        image: column with encoded pictures.
        label: column with the class: numbers, texts, or true and false; or lists of numbers or
            texts, the set of classes of each picture.
        unknown: column with lists of those classes of which nobody knows whether the picture has
            them; None where all are known.
        num_classes: of numbers without names; None for the largest and those below it.
        attempts: failed reads in a row that end the run.
        cache: keeps what was fetched on this host; None keeps nothing.
    """

    files: tuple[str, ...] = means(Effect.NONE)
    split: str
    # The two decide the order of the examples, of which no fingerprint tells.
    virtual_shards: typing.Annotated[int, Within(1)] = means(
        Effect.ANOTHER_RUN, in_step=False, default=1
    )
    window: typing.Annotated[int, Within(1)] = means(Effect.ANOTHER_RUN, in_step=False, default=2)
    image: str = "image"
    label: str = "label"
    unknown: str | None = None
    num_classes: typing.Annotated[int, Within(1)] | None = None
    attempts: typing.Annotated[int, Within(1)] = means(Effect.NONE, default=8)
    cache: range_cache.Cache | None = means(Effect.NONE, default=None)

    def open(self, flags: tuple[str, str] = ("Parquet.image", "Parquet.label")) -> "Rows":
        """The rows, after reading the footers of all files, many at a time.

        Args:
            flags: that give the columns, for error texts.
        Raises:
            BadInput: if a file, split or column is missing, is no Parquet, or has labels out of
                range.
            Unavailable: if the server fails again and again.
        """
        trying = retries.Retries(self.attempts)
        storages = named_splits.resolved(
            "Parquet.files", self.files, self.split, SUFFIX, trying, self.cache
        )
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            files = list(pool.map(functools.partial(parquet_file.opened, trying=trying), storages))
            for file in files:
                self._check_columns(file, flags)
            groups = tuple(group for file in files for group in self._groups(file))
            if not groups:
                raise failures.BadInput(f"{files[0].name} and others have no rows.")
            names = self._class_names(files, pool)
        doubted = () if self.unknown is None else (self.unknown,)
        digest = hashlib.sha256(repr((names, self.image, self.label, *doubted)).encode())
        for file in files:
            digest.update(file.footer)
        row_groups = batch.RowGroups(
            tuple(group.rows for group in groups),
            tuple(group.bytes for group in groups),
            self.virtual_shards,
            self.window,
        )
        return Rows(self, groups, names, digest.hexdigest()[:16], row_groups)

    def _check_columns(self, file: parquet_file.File, flags: tuple[str, str]) -> None:
        schema, others = file.schema, f" {file.name} has {', '.join(file.schema.names)}."
        for flag, column in zip((*flags, "Parquet.unknown"), self.columns, strict=False):
            checks.one_of(flag, column, schema.names, others)
        image, label = schema.field(self.image).type, schema.field(self.label).type
        fields = {field.name: field.type for field in image} if types.is_struct(image) else {}
        if not parquet_file.is_bytes(fields.get("bytes", image)):
            raise failures.BadInput(
                f"{flags[0]} is {self.image!r}, of type {image} in {file.name}; give a column of "
                "binary, or of struct with binary as `bytes`."
            )
        of_items = parquet_file.of_items(label)
        are_classes = types.is_integer(of_items) or parquet_file.is_text(of_items)
        if not (are_classes or types.is_boolean(label)):
            raise failures.BadInput(
                f"{flags[1]} is {self.label!r}, of type {label} in {file.name}; give a column of "
                "integers, texts, or true and false, or lists of integers or texts."
            )
        if self.unknown is None:
            return
        unknown = schema.field(self.unknown).type
        if not (parquet_file.is_list(label) and unknown == label):
            raise failures.BadInput(
                f"Parquet.unknown is {self.unknown!r}, of type {unknown} in {file.name}, and "
                f"{flags[1]} of type {label}; give two columns of lists of one type."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.image, self.label, *(() if self.unknown is None else (self.unknown,)))

    def _groups(self, file: parquet_file.File) -> Iterator["_Group"]:
        first = 0
        for number in range(file.metadata.num_row_groups):
            if rows := file.metadata.row_group(number).num_rows:
                chunks = file.chunks(number, self.columns)
                size = sum(chunk.total_uncompressed_size for chunk in chunks)
                yield _Group(file, number, first, rows, size)
            first += rows

    def _class_names(
        self, files: Sequence[parquet_file.File], pool: concurrent.futures.Executor
    ) -> tuple[str, ...]:
        """The names that the Hub's library stores, texts in alphabetical order, or numbers."""
        stored = next(filter(None, (file.stored_names(self.label) for file in files)), ())
        kind = files[0].schema.field(self.label).type
        if types.is_boolean(kind):
            return stored or ("false", "true")
        columns = self.columns[1:]
        found = pool.map(
            lambda file: {label for column in columns for label in file.labels(column)}, files
        )
        seen = sorted({label for labels in found for label in labels})
        if not (seen or stored or self.num_classes):
            raise failures.BadInput(
                f"column {self.label!r} of {files[0].name} and others has no class in any row; "
                "give another column."
            )
        if parquet_file.is_text(parquet_file.of_items(kind)):
            names = stored or tuple(seen)
            wrong = sorted(set(seen).difference(names))
        else:
            count = len(stored) or self.num_classes or seen[-1] + 1
            where = f"column {self.label!r} of {files[0].name} and others"
            names = stored or classes.numbered(count, where)
            wrong = [label for label in seen if not 0 <= label < count]
        if wrong:
            raise failures.BadInput(
                f"column {self.label!r} of {files[0].name} and others has label {wrong[0]}, "
                f"labels are 0 to {len(names) - 1}; take a split whose labels are known."
            )
        return names


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """A row group that is not empty."""

    file: parquet_file.File
    number: int  # in the file
    first: int  # row in the file
    rows: int
    bytes: int  # of the columns in memory


class _Loaded(typing.NamedTuple):
    """The rows of a row group in memory."""

    pictures: pyarrow.ChunkedArray
    names: pyarrow.ChunkedArray | None
    labels: list[typing.Any]  # a number, a list of numbers or None
    unknown: list[typing.Any] | None  # likewise


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(batch.Source):
    """Rows of Parquet files, by number."""

    config: Parquet
    groups: tuple[_Group, ...]  # of all files, in order
    class_names: tuple[str, ...]
    fingerprint: str
    row_groups: batch.RowGroups

    @property
    def has_texts(self) -> bool:
        """Whether the column of labels holds the names of classes."""
        kind = self.groups[0].file.schema.field(self.config.label).type
        return parquet_file.is_text(parquet_file.of_items(kind))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> batch.Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        group = self.groups[number]
        row = index - int(self._ends[number]) + group.rows
        loaded = self._cache[number]
        picture, label = loaded.pictures[row].as_buffer(), loaded.labels[row]
        unknown = loaded.unknown[row] if loaded.unknown else ()
        for column, value in zip(self.config.columns[1:], (label, unknown), strict=False):
            if value is None or (isinstance(value, list) and None in value):
                raise group.file.without_label(1, column)
        if isinstance(label, list):
            known = set(label)
            label = batch.ClassSet(tuple(sorted(known)), tuple(sorted({*unknown} - known)))
        name = loaded.names[row].as_py() if loaded.names is not None else None
        key = name or f"{posixpath.basename(group.file.name)} row {group.first + row}"
        # Arrow's own are signed; an empty one is corrupt.
        return batch.labelled(
            memoryview(picture).cast("B") if picture is not None else b"", label, key
        )

    def class_counts(self) -> None:
        """Unknown: labels are read for nothing but balanced drawing."""

    def read_labels(self) -> np.ndarray | None:
        """As of `Source`, from the column of labels alone."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            labels = [*pool.map(lambda group: self._labels(group)[0], self.groups)]
        every = [label for some in labels for label in some]
        return None if any(isinstance(label, list) for label in every) else np.array(every)

    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> contextlib.AbstractContextManager[None]:
        return self._cache.holding(groups, ahead, limit_bytes)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.row_groups.lengths)

    @functools.cached_property
    def _cache(self) -> row_cache.RowCache[_Loaded]:
        return row_cache.RowCache(self._load, self.row_groups.bytes)

    def _load(self, number: int) -> _Loaded:
        group, config = self.groups[number], self.config
        table = group.file.read(group.number, config.columns)
        pictures, names = table.column(config.image), None
        labels = self._labels(group, table)
        if types.is_struct(pictures.type):
            fields = dict(zip((f.name for f in pictures.type), pictures.flatten(), strict=True))
            pictures, names = fields["bytes"], fields.get("path")
        return _Loaded(pictures, names, labels[0], labels[1] if config.unknown else None)

    def _labels(self, group: _Group, table: pyarrow.Table | None = None) -> list[list[typing.Any]]:
        """The numbers of the classes of all rows, in each column of them."""
        number_of: dict[object, int] = {True: 1, False: 0}
        if self.has_texts:
            number_of = {name: number for number, name in enumerate(self.class_names)}

        def numbers(value: typing.Any) -> typing.Any:
            return (
                list(map(numbers, value))
                if isinstance(value, list)
                else number_of.get(value, value)
            )

        columns = self.config.columns[1:]
        table = table or group.file.read(group.number, columns)
        return [[*map(numbers, table.column(each).to_pylist())] for each in columns]

    def __getstate__(self) -> dict[str, typing.Any]:
        # Without the row groups in memory: another process has its own.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
