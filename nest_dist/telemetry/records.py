"""Records are not the run: what is wrong with one costs a line of warning, never a step."""

import contextlib
import json
import pathlib
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping

from nest_dist.base import failures, files

Line = dict[str, typing.Any]  # JSON
Result = typing.TypeVar("Result")

# What reading or writing a record may raise.
ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)
_TOLD: set[pathlib.Path] = set()


@contextlib.contextmanager
def tolerated(path: pathlib.Path) -> Iterator[None]:
    """Turns errors inside into one warning for each record."""
    try:
        yield
    except ERRORS as error:
        if path not in _TOLD:
            _TOLD.add(path)
            warn(f"{path} cannot be written ({failures.cause(error)}); the run goes on without it")


def read(path: pathlib.Path, parse: Callable[[bytes], Result]) -> Result | None:
    """What `parse` makes of a file; None without one, or if it is damaged: then it moves aside."""
    with tolerated(path):
        files.remove_leftovers(path)
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except ERRORS as error:
        with tolerated(path):
            aside = path.replace(_aside(path))
            warn(f"{path} is damaged ({failures.cause(error)}), moved to {aside} and begun anew")
        return None


def truncate(path: pathlib.Path, keep: Callable[[Line], bool]) -> list[Line]:
    """The lines of JSON to keep; the others are removed, durably.

    A copy stays of a file with lines that are damaged.
    """
    kept: list[Line] = []
    with tolerated(path):
        files.remove_leftovers(path)
        if not path.exists():
            return []
        *complete, half = path.read_bytes().split(b"\n")  # a killed process may leave half a line
        parsed = [_parsed(text) for text in complete]
        if None in parsed:
            aside = shutil.copy(path, _aside(path))
            warn(f"{path} has damaged lines, which are left out; {aside} still has them")
        kept = [line for line in parsed if line is not None and keep(line)]
        if half or len(kept) < len(complete):
            files.write_text_durably(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def lines(path: pathlib.Path) -> list[Line]:
    """The complete lines of JSON that have a step; others are skipped."""
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return []
    return [line for text in texts if (line := _parsed(text)) is not None]


def append(path: pathlib.Path, line: Mapping[str, object]) -> None:
    """Adds a line of JSON, or none of it."""
    with tolerated(path):
        text = json.dumps(line).encode() + b"\n"
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(text) < len(text):
                    raise OSError("the disk is full")
            except OSError:
                file.truncate(end)
                raise


def sync(path: pathlib.Path) -> None:
    """Brings a file, if it exists, to the disk."""
    with tolerated(path):
        if path.exists():
            files.sync(path)


def _parsed(text: bytes) -> Line | None:
    """A line with the step of its metrics; None if it is damaged."""
    try:
        line = files.parsed(text)
        return line if isinstance(line["step"], int) else None
    except ERRORS:
        return None


def warn(text: str) -> None:
    """Shows a line, if there is still somebody to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def _aside(path: pathlib.Path) -> pathlib.Path:
    names = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in ("", *range(2, 100)))
    return next(name for name in names if not name.exists())
