"""Mistakes in gin files and bindings, each in one line: what gin says, its place, and a remedy."""

import contextlib
import dataclasses
import os
import re
import tokenize
from collections.abc import Iterator, Mapping

from nest_dist.base import checks, failures
from nest_dist.config import gin_state, shipped

# What gin and the modules that it imports raise for a mistake in a file.
MISTAKES = (
    *(ValueError, TypeError, SyntaxError, OSError, ImportError, RuntimeError),
    tokenize.TokenError,
)
# A binding whose value may be a text without quotes.
_UNQUOTED = re.compile(r"\s*([\w./]+)\s*=\s*([\w~./][\w~./: -]*?)\s*(?:#.*)?")


@contextlib.contextmanager
def explained(renamed: Mapping[str, str]) -> Iterator[None]:
    """Makes one line of a mistake that comes while this is open.

    Args:
        renamed: names of earlier versions, each with its successor.
    Raises:
        BadInput: with that line.
    """
    try:
        yield
    except MISTAKES as error:
        raise failures.BadInput(_explain(error, renamed)) from error


def _explain(error: Exception, renamed: Mapping[str, str]) -> str:
    """gin's message in one line, with its location in a file and similar names."""
    message = str(error)
    first = failures.first_line(error)
    location = re.search(r"In ((?:file|bindings string).*)", message)
    where = f" (in {location[1].rstrip()})" if location else ""
    if match := re.search(r"Configurable '(\S+)' doesn't have a parameter named '(\S+)'", message):
        name, parameter = match[1].rpartition(".")[2], match[2]
        if (new := renamed.get(f"{name}.{parameter}")) is not None:
            now = f"is now {new}{where}; bind that" if new else f"is no more{where}; leave it out"
            return f"{name}.{parameter} {now}."
        known = [field.name for field in dataclasses.fields(gin_state.registered()[name])]
        hint = checks.suggestion(parameter, known)
        return f"{name} has no parameter {parameter!r}{where}; {hint}"
    if match := re.search(r"No configurable matching (?:reference )?'@?([^'()]+)", message):
        name = match[1].rpartition("/")[2]
        if new := renamed.get(name.partition(".")[0]):
            return f"{name.partition('.')[0]} is now {new}{where}; bind that."
        hint = checks.suggestion(name, gin_state.registered())
        return f"there is no {name!r} to configure{where}; {hint}"
    if match := re.search(r"No values supplied by Gin or caller for arguments: \[(.+)\]", message):
        name = re.search(r"In call to configurable '([^']+)'", message)
        owner = name[1].rpartition(".")[2] if name else "the configuration"
        return f"{owner} has no value for {match[1]}; bind each, as in {owner}.NAME = VALUE."
    if match := re.search(r"No module named '(nest_dist\.[\w.]+)'", message):
        if new := renamed.get(match[1]):
            return f"{match[1]} is now {new}{where}; import that."
        return (
            f"there is no module {match[1]} in this version{where}; leave the import out: but for "
            "sources, nest_dist's own modules need none."
        )
    if isinstance(error, RecursionError):
        return "a value refers to itself, as in NesT.dim = @NesT(); give it a value of its own."
    if isinstance(error, SyntaxError):
        return _unreadable(error)
    if isinstance(error, tokenize.TokenError):
        return "gin cannot read the end of a value; close each bracket and each quote."
    if match := re.search(r"Unable to open file: (\S+)\. Searched", message):
        beside = shipped.names(os.path.dirname(match[1])) or shipped.names()
        hint = checks.suggestion(match[1], beside)
        return f"the included file {match[1]!r} is not there{where}; {hint}"
    ended = first if first.endswith((".", "?")) else f"{first}."
    return f"{first.rstrip('.')}{where}" if where else ended


def _unreadable(error: SyntaxError) -> str:
    """Of a line that is no gin: the line, and how to write it."""
    line = (error.text or "").strip()
    if (error.filename or "").endswith(".py"):  # a module that gin imports
        return f"{error.filename} is no Python in line {error.lineno} ({error.msg}); correct it."
    if not line:
        return (
            f"gin cannot read {failures.first_line(error)!r}; put quotes around text, and write "
            "NAME.FIELD = VALUE."
        )
    if match := _UNQUOTED.fullmatch(line):
        return f"gin cannot read {line!r}; put quotes around text: {match[1]} = {match[2]!r}."
    return f"gin cannot read {line!r}; put quotes around text, and write NAME.FIELD = VALUE."
