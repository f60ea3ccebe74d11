"""The class of each picture in a file of labels, and the names in a file of classes."""

import codecs
import csv
import pathlib
import posixpath
import re
from collections.abc import Iterable, Sequence

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.sources import image_folder

SEPARATORS = "\t,; "
UNKNOWN = "?"
CLASS_COLUMNS = ("class", "label", "category", "class_name", "label_name")
BOXES = "predictionstring"  # the column of Kaggle's LOC_val_solution.csv
Row = tuple[int, list[str]]  # number of the line, and its fields


def lines(flag: str, path: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1."""
    try:
        content = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise failures.BadInput(
            f"{flag} is {path}, which cannot be read ({error.strerror}); give a text file."
        ) from None
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Bytes that are no UTF-8 stay as they are, as in the names of files.
    encoding, errors = ("utf-16", "replace") if is_wide else ("utf-8", "surrogateescape")
    text = content.decode(encoding, errors).lstrip("\ufeff")
    if "\0" in text:
        raise failures.BadInput(f"{flag} is {path}, which is no text; give a text file.")
    stripped = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    if not (kept := [(number, line) for number, line in stripped if line]):
        raise failures.BadInput(f"{flag} is {path}, which is empty; give one class a line.")
    return kept


def by_file(names: Sequence[str], path: str, may_lack: bool = False) -> list[str]:
    """The class of each picture in a file of labels: NAME CLASS a line, or one class a line.

    A tab, a comma, a semicolon or a space separates name and class, which may be quoted. The name
    needs neither folder nor suffix; lines about other files are ignored. Of more columns, a header
    names the one with the class. Classes alone belong to the pictures in the order of their names.

    Args:
        may_lack: whether a line may have no class, as where each is a set.
    Raises:
        BadInput: with the number of a line that cannot be understood, or if a picture has no class.
    """
    file = _Labels(names, path)
    rows = file.rows()
    if rows is None:
        return file.in_order()
    rows, name_column, class_column = file.columns(rows)
    classes: dict[str, tuple[str, int]] = {}
    for number, fields in rows:
        picture, name = file.picture(fields[name_column]), fields[class_column]
        if picture is None:
            continue
        if not picture:
            reason = f"says {fields[name_column]}, as several pictures are called"
            raise file.refusal(number, reason, "give their folders or suffixes")
        if not name and not may_lack:
            raise file.refusal(number, f"has no class for {picture}", "add it")
        known, before = classes.setdefault(picture, (name, number))
        if known != name:
            reason = f"says {picture} is {name!r}, line {before} says {known!r}"
            raise file.refusal(number, reason, "correct one of them")
    if missing := [name for name in names if name not in classes]:
        raise failures.BadInput(
            f"--labels is {path}, which has no line for {len(missing)} of {len(names)} pictures, "
            f"the first is {missing[0]}; add them."
        )
    return [classes[name][0] for name in names]


def sets(lines_of: Sequence[str], separator: str) -> tuple[list[str], list[batch.ClassSet]]:
    """The names of all classes in alphabetical order, and the set of each picture.

    Args:
        lines_of: the classes of each picture, as of `by_file`. `UNKNOWN` before a name says that
            nobody knows whether the picture has this class. Nothing is the empty set.
    """
    fields = [{it.strip() for it in line.split(separator)} - {""} for line in lines_of]
    names = sorted({field.removeprefix(UNKNOWN).strip() for line in fields for field in line})
    if bare := [line for line, classes in zip(lines_of, fields, strict=True) if UNKNOWN in classes]:
        raise failures.BadInput(
            f"--labels has {bare[0]!r}, where {UNKNOWN} is before no class; write {UNKNOWN}CLASS."
        )
    label_of = {name: label for label, name in enumerate(names)}
    found = []
    for line in fields:
        doubted = {field for field in line if field.startswith(UNKNOWN)}
        unknown = {label_of[field.removeprefix(UNKNOWN).strip()] for field in doubted}
        known = {label_of[field] for field in line - doubted}
        found.append(batch.ClassSet(tuple(sorted(known)), tuple(sorted(unknown - known))))
    return names, found


class _Labels:
    """A file of labels for some pictures."""

    def __init__(self, names: Sequence[str], path: str) -> None:
        self._names, self._path = names, path
        self._lines = lines("--labels", path)
        # By each name, also without folder or suffix; "" where there are several.
        self._pictures: dict[str, str] = {}
        for name in names:
            for key in _keys(name):
                self._pictures[key] = "" if self._pictures.get(key, name) != name else name
        self._pictures |= {name: name for name in names}

    def refusal(self, number: int, reason: str, remedy: str) -> failures.BadInput:
        return failures.BadInput(
            f"--labels is {self._path}, whose line {number} {reason}; {remedy}."
        )

    def picture(self, field: str) -> str | None:
        """The picture that a field names; "" if there are several, None if there is none."""
        name = posixpath.normpath(field.strip().replace("\\", "/"))
        return next((self._pictures[key] for key in _keys(name) if key in self._pictures), None)

    def rows(self) -> list[Row] | None:
        """The fields of each line, by the first separator with which a field names a picture."""
        for separator in SEPARATORS:
            rows = [(number, _split(line, separator)) for number, line in self._lines]
            if any(self.picture(x) is not None for _, row in rows if len(row) > 1 for x in row):
                if odd := next((number for number, row in rows if len(row) < 2), None):
                    if separator == " ":
                        raise self.refusal(odd, "has no class", "add it")
                    raise self.refusal(odd, f"cannot be split at {separator!r}", "correct it")
                return rows
        return None

    def columns(self, rows: list[Row]) -> tuple[list[Row], int, int]:
        """The rows without a header, and the columns of name and class."""
        first, header = rows[0]
        width = len(header)
        if odd := next((row for row in rows if len(row[1]) != width), None):
            reason = f"has {len(odd[1])} columns, line {first} has {width}"
            raise self.refusal(odd[0], reason, "give all lines the same")
        named = [at for at in range(width) if header[at].lower() in (*CLASS_COLUMNS, BOXES)]
        hits = [(0, 0) if at in named else self._hits(rows, at) for at in range(width)]
        name = hits.index(max(hits))
        has_header = self.picture(header[name]) is None
        others = [at for at in range(width) if at != name and any(row[at] for _, row in rows)]
        if len(others) > 1 and hits.count(hits[name]) > 1:
            raise self.refusal(first, "names pictures in two columns", "give NAME CLASS a line")
        if len(others) > 1:
            if not has_header or len(named) != 1:
                raise self.refusal(
                    first,
                    f"has {len(others) + 1} columns and names none as that of classes",
                    f"give a header with one column called {' or '.join(CLASS_COLUMNS[:2])}, or "
                    "NAME CLASS a line",
                )
            others = named
        if not others:
            raise self.refusal(first, "has no class", "give NAME CLASS a line")
        if has_header and header[others[0]].lower() == BOXES:
            for _, row in rows:
                row[others[0]] = row[others[0]].partition(" ")[0]
        return rows[1:] if has_header and len(rows) > 1 else rows, name, others[0]

    def in_order(self) -> list[str]:
        """Classes alone, of the pictures in the order of their names."""
        names = self._names
        if len(self._lines) != len(names):
            raise failures.BadInput(
                f"--labels is {self._path} with {len(self._lines)} lines, none of which names a "
                f"picture such as {names[0]}, and there are {len(names)} pictures; give NAME CLASS "
                "a line, or one class a line for all pictures in the order of their names."
            )
        suffixes = "|".join(map(re.escape, image_folder.SUFFIXES))
        for number, line in self._lines:
            if re.search(rf"({suffixes})\b", line.lower()):
                raise self.refusal(number, f"names another picture than {names[0]}", "correct it")
        classes = (_unquoted(line) for _, line in self._lines)
        class_of = dict(zip(sorted(names), classes, strict=True))
        return [class_of[name] for name in names]

    def _hits(self, rows: list[Row], at: int) -> tuple[int, int]:
        """How many fields of a column name a picture with its suffix, and how many in all."""
        naming = [row[at] for _, row in rows if self.picture(row[at]) is not None]
        return sum(_without_suffix(field) != field for field in naming), len(naming)


def _keys(name: str) -> Iterable[str]:
    base = posixpath.basename(name)
    return dict.fromkeys((name, _without_suffix(name), base, _without_suffix(base)))


def _without_suffix(name: str) -> str:
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in image_folder.SUFFIXES else name


def _split(line: str, separator: str) -> list[str]:
    """The fields of a line; only one if there is no other, or a quote is left open."""
    if separator == " ":
        return line.split(None, 1)
    try:
        (fields,) = csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        return [line]
    return [_unquoted(field.strip()) for field in fields]


def _unquoted(line: str) -> str:
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" else line
