"""gin's private tables. Only this file reaches them; pyproject.toml bounds the version of gin.

gin keeps one configuration for the whole program. nest_dist's own stays inside `isolated`, so a
program that uses gin itself finds its configuration as it left it.
"""

import contextlib
import dataclasses
import io
import logging
import os
import typing
from collections.abc import Iterator

import gin
from etils import epath
from gin import config, config_parser

from nest_dist.base import failures, settings
from nest_dist.config import shipped

# Scope and selector, as ("train", "nest_dist.data.sources.digits.Digits").
Key = tuple[str, str]
_TABLES = ("_CONFIG", "_OPERATIVE_CONFIG", "_SINGLETONS", "_IMPORTS")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Empties gin's configuration while this is open, and restores the program's own afterwards.

    gin would look for an include in the working folder and in Python packages. Here it is a shipped
    file, whatever else is there, or a file beside the one that includes it.
    """
    saved = {name: getattr(config, name).copy() for name in _TABLES}
    locked = config.config_is_locked()
    readers, prefixes = config._FILE_READERS, config._LOCATION_PREFIXES
    includes = _Includes(str(shipped.folder()))
    config._FILE_READERS = [(includes.open, lambda name: includes.find(name) is not None)]
    config._LOCATION_PREFIXES = [""]
    logging.disable(logging.CRITICAL)  # gin logs each path that it tries for an include
    try:
        gin.clear_config()
        yield
    finally:
        logging.disable(logging.NOTSET)
        config._FILE_READERS, config._LOCATION_PREFIXES = readers, prefixes
        gin.clear_config()
        for name, table in saved.items():
            getattr(config, name).update(table)
        config._set_config_is_locked(locked)


class _Includes:
    """Finds and opens the files that gin reads: the first by `located`, others by their name."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._reading: list[str] = []  # each is included by the one before

    def find(self, name: str) -> str | None:
        """The path of a file, of which a gin file or the command line tells the name."""
        beside = [os.path.dirname(self._reading[-1])] if self._reading else []
        folders = [""] if "://" in name else [self._folder, *beside, ""]
        paths = [os.path.join(folder, name) for folder in folders]
        return next((path for path in paths if epath.Path(path).is_file()), None)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[typing.TextIO]:
        """Opens a file that `find` finds; without a byte order mark."""
        path = str(self.find(name))
        if path in self._reading:
            raise failures.BadInput(f"the file {path} includes itself; leave that include out.")
        self._reading.append(path)
        try:
            yield io.StringIO(epath.Path(path).read_bytes().decode("utf-8-sig"))
        finally:
            self._reading.pop()


def located(path: typing.Any) -> str:
    """A path for gin that names no shipped file by chance."""
    return str(path) if "://" in str(path) else os.path.abspath(path)


class Statement(typing.NamedTuple):
    """One binding as it is written."""

    name: str  # SCOPE/CLASS.FIELD, or that of a macro
    text: str  # the value, references as @SCOPE/CLASS() and %MACRO
    where: str  # "FILE:LINE", or what stands for the command line


class _AsWritten(config_parser.ParserDelegate):
    """Keeps references as their text."""

    class Reference(str):
        """Without quotes where it stands in a tuple."""

        def __repr__(self) -> str:
            return str(self)

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> str:
        return self.Reference(f"@{scoped_selector}{'()' if evaluate else ''}")

    def macro(self, name: str) -> str:
        return self.Reference(f"%{name}")


def statements(path: typing.Any) -> Iterator[Statement]:
    """The bindings of a gin file that has been parsed before, and of what it includes, in order."""
    includes = _Includes(str(shipped.folder()))
    yield from _statements_of_file(located(path), includes)


def by_origin(path: typing.Any) -> tuple[list[Statement], list[Statement]]:
    """The bindings of a parsed file: those that it includes, and its own."""
    own_file = _shown(located(path))
    included: list[Statement] = []
    own: list[Statement] = []
    for statement in statements(path):
        is_own = statement.where.rpartition(":")[0] == own_file
        (own if is_own else included).append(statement)
    return included, own


def _shown(path: str) -> str:
    return path.removeprefix(f"{shipped.folder()}/")


def _statements_of_file(name: str, includes: _Includes) -> Iterator[Statement]:
    path = str(includes.find(name))
    with includes.open(name) as file:
        for statement in config_parser.ConfigParser(file, _AsWritten()):
            if isinstance(statement, config_parser.IncludeStatement):
                yield from _statements_of_file(statement.filename, includes)
            elif isinstance(statement, config_parser.BindingStatement):
                yield _statement(statement, f"{_shown(path)}:{statement.location.line_num}")


def statements_in(text: str, where: str) -> Iterator[Statement]:
    """The bindings of a text, such as one of the command line, and of what it includes."""
    for statement in config_parser.ConfigParser(text, _AsWritten()):
        if isinstance(statement, config_parser.IncludeStatement):
            includes = _Includes(str(shipped.folder()))
            yield from _statements_of_file(statement.filename, includes)
        elif isinstance(statement, config_parser.BindingStatement):
            yield _statement(statement, where)


def _statement(statement: typing.Any, where: str) -> Statement:
    name = statement.selector.rpartition(".")[2]
    if statement.arg_name:
        name = f"{name}.{statement.arg_name}"
    name = f"{statement.scope}/{name}" if statement.scope else name
    return Statement(name, repr(statement.value), where)


def missing(selector: str) -> list[str]:
    """Names that lack a value, of all that a configurable refers to: CLASS.FIELD and %MACRO."""
    classes = registered()
    fields: dict[str, set[str]] = {}
    macros = {scope for scope, name in config._CONFIG if name == "gin.macro"}
    for (_, name), parameters in config._CONFIG.items():
        fields.setdefault(name.rpartition(".")[2], set()).update(parameters)
    names = []
    for scope, name in sorted(reachable(selector)):
        short = name.rpartition(".")[2]
        if name == "gin.macro" and scope and scope not in macros:
            names.append(f"%{scope}")
        if dataclasses.is_dataclass(cls := classes.get(short)):
            names += [
                f"{short}.{field.name}"
                for field in settings.fields(cls)
                if field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
                and field.name not in fields.get(short, ())
            ]
    return list(dict.fromkeys(names))


def bound() -> dict[Key, dict[str, typing.Any]]:
    """All bindings so far: scope and selector -> {parameter: value}."""
    return {key: dict(parameters) for key, parameters in config._CONFIG.items()}


def reachable(selector: str) -> set[Key]:
    """Scopes and selectors of everything that a configurable refers to, directly or indirectly.

    Args:
        selector: of the configurable, in full or its last name.
    """
    pending = [key for key in config._CONFIG if key[1].rpartition(".")[2] == selector]
    visited: set[Key] = set()
    seen: set[Key] = set()
    while pending:
        scope, name = key = pending.pop()
        if key in visited:
            continue
        visited.add(key)
        # A binding of an outer scope, or without one, applies where no inner one replaces it.
        scopes = scope.split("/") if scope else []
        bindings: dict[str, typing.Any] = {}
        for depth in range(len(scopes) + 1):
            seen.add(outer := ("/".join(scopes[:depth]), name))
            bindings |= config._CONFIG.get(outer, {})
        for value in bindings.values():
            pending += [reference.config_key for reference in config.iterate_references(value)]
    return seen


def used() -> dict[Key, set[str]]:
    """The parameters that calls have used: scope and selector -> their names."""
    return {key: set(parameters) for key, parameters in config._OPERATIVE_CONFIG.items()}


def registered() -> dict[str, typing.Any]:
    """Everything that can be configured, by its short name."""
    return {
        selector.rpartition(".")[2]: entry.wrapped
        for selector, entry in config._REGISTRY._selector_map.items()
        if not selector.startswith("gin.")
    }
