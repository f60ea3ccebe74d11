"""Pictures in Parquet files, as the Hugging Face Hub has them."""

import bisect
import dataclasses
import functools
import hashlib
import json
import pathlib
import typing
from collections.abc import Iterator, Sequence

from nest_dist.base import failures
from nest_dist.data import batch

ROWS_READ = 32  # at a time; a row group may hold all pictures of a file
PICTURES = ("struct<bytes: binary", "binary", "large_binary")
LABELS = ("int", "uint", "string", "large_string", "dictionary<values=string")


class Group(typing.NamedTuple):
    """A row group: its file, its number there, and the number of its first row in all files."""

    path: str
    number: int
    start: int


class _Cursor:
    """Where reading stands; another process starts with a new one."""

    place = -1  # of the next row
    rows: Iterator[batch.Example] = iter(())

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _Cursor, ()


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of Parquet files as a source; fast when they are read in order.

    Attributes:
        groups: of all files, in order.
        length: rows in all files.
        class_names: the name of each label.
        texts: whether the files hold these names, rather than numbers.
        image: name of the column with the encoded picture.
        label: name of the column with the class.
        fingerprint: of names and sizes of the files, columns and classes.
    """

    groups: tuple[Group, ...]
    length: int
    class_names: tuple[str, ...]
    texts: bool
    image: str
    label: str
    fingerprint: str
    _cursor: _Cursor = dataclasses.field(default_factory=_Cursor, repr=False)

    @functools.cached_property
    def _label_of(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> batch.Example:
        if index != self._cursor.place:
            group = bisect.bisect_right(self.groups, index, key=lambda group: group.start) - 1
            self._cursor.rows = self._rows_from(group)
            for _ in range(index - self.groups[group].start):
                next(self._cursor.rows)
        self._cursor.place = index + 1
        return next(self._cursor.rows)

    def _rows_from(self, first: int) -> Iterator[batch.Example]:
        for group in self.groups[first:]:
            name = pathlib.Path(group.path).name
            place = group.start
            try:
                batches = _opened(group.path).iter_batches(
                    ROWS_READ, row_groups=[group.number], columns=[self.image, self.label]
                )
                for found in batches:
                    images = found.column(self.image)
                    for image, label in zip(images, found.column(self.label), strict=True):
                        value, key = image.as_py(), f"{name} row {place}"
                        if isinstance(value, dict):
                            value, key = value["bytes"], value.get("path") or key
                        label = label.as_py()
                        label = self._label_of[label] if self.texts else label
                        yield {"image": value or b"", "label": label, "key": key}
                        place += 1
            except (OSError, ValueError) as error:
                raise failures.BadInput(
                    f"{group.path} is damaged in row group {group.number} "
                    f"({failures.first_line(error)[:120]}); fetch it again."
                ) from None


def opened(paths: Sequence[pathlib.Path], image: str, label: str) -> Rows:
    """The rows of some files.

    Args:
        paths: of the files, in order.
        image: name of the column with the encoded picture, or a struct with it as `bytes`.
        label: name of the column with the class, numbers or texts.
    Raises:
        BadInput: if a file is no Parquet file, lacks a column, or has labels out of range.
    """
    groups: list[Group] = []
    length = 0
    seen: set[str | int] = set()
    names: tuple[str, ...] = ()
    digest = hashlib.sha256(repr((image, label)).encode())
    for path in paths:
        file = _opened(str(path))
        _check_column("--image_column", image, path, file, PICTURES)
        _check_column("--label_column", label, path, file, LABELS)
        names = names or _names(file.schema_arrow, label)
        seen.update(_values(path, file, label))
        for number in range(file.num_row_groups):
            groups.append(Group(str(path), number, length))
            length += file.metadata.row_group(number).num_rows
        digest.update(repr((path.name, path.stat().st_size)).encode())
    texts = all(isinstance(value, str) for value in seen)
    if not texts:
        lowest, highest = min(seen, key=int), max(seen, key=int)
        names = names or tuple(str(number) for number in range(int(highest) + 1))
        if int(lowest) < 0 or int(highest) >= len(names):
            wrong = lowest if int(lowest) < 0 else highest
            raise failures.BadInput(
                f"column {label!r} of {paths[0].parent} has label {wrong}, labels are 0 to "
                f"{len(names) - 1}; prepare a split whose labels are known."
            )
    names = tuple(sorted(map(str, seen))) if texts else names
    digest.update(repr(names).encode())
    return Rows(tuple(groups), length, names, texts, image, label, digest.hexdigest()[:16])


def _values(path: pathlib.Path, file: typing.Any, label: str) -> list[str | int]:
    """The labels that a file has, each once."""
    try:
        found = file.read([label]).column(label)
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{path} is damaged in column {label!r} ({failures.first_line(error)[:120]}); fetch it "
            "again."
        ) from None
    if found.null_count:
        raise failures.BadInput(
            f"{path} has {found.null_count} rows without a value in column {label!r}; give the "
            "column that holds the class as --label_column."
        )
    return found.unique().to_pylist()


def _check_column(
    flag: str, column: str, path: pathlib.Path, file: typing.Any, wanted: tuple[str, ...]
) -> None:
    schema = file.schema_arrow
    if column not in schema.names:
        raise failures.BadInput(
            f"{flag} is {column!r}, but {path} has the columns {', '.join(schema.names)}; give one "
            "of them."
        )
    kind = str(schema.field(column).type)
    if not kind.startswith(wanted):
        raise failures.BadInput(
            f"{flag} is {column!r}, of type {kind} in {path}; give a column of type "
            f"{' or '.join(wanted)}."
        )


def _names(schema: typing.Any, label: str) -> tuple[str, ...]:
    """The names of classes that the Hugging Face library keeps beside the data."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (TypeError, LookupError, ValueError):
        return ()


def _opened(path: str) -> typing.Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise failures.BadInput(
            f"{path} is a Parquet file, which takes pyarrow; pip install 'nest_dist[huggingface]'."
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise failures.BadInput(
            f"{path} is no whole Parquet file ({failures.first_line(error)[:120]}); fetch it again."
        ) from None
