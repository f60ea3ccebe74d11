"""Objects from the text of a configuration, without touching what gin holds in this process.

`nest_dist.load` runs inside programs that may use gin themselves, and the text may come with
weights from elsewhere: only this package's own classes are made of it.
"""

import importlib
import tokenize
import typing
from collections.abc import Iterator

from gin import config_parser

from nest_dist.base import failures

# Whose classes a text may name; data sources, which open files, are not among them.
MODULES = ("nest_dist.model", "nest_dist.train", "nest_dist.data.")
NOT_MODULES = ("nest_dist.data.sources",)


class Recorded:
    """A configuration that was recorded with a run, or a shipped file."""

    def __init__(self, text: str, **macros: typing.Any) -> None:
        """Reads the text.

        Args:
            text: statements of gin.
            macros: values for macros that the text leaves open.
        Raises:
            BadInput: if it is no gin.
        """
        self._bindings: dict[tuple[str, str], dict[str, typing.Any]] = {}
        self._macros = dict(macros)
        self._modules: list[str] = []
        try:
            for statement in config_parser.ConfigParser(text, _Delegate()):
                self._take(statement)
        except (SyntaxError, tokenize.TokenError) as error:
            raise failures.BadInput(
                f"the configuration that was recorded cannot be read ({error.args[0]}); the "
                "checkpoint is damaged."
            ) from None

    def value(self, name: str, field: str) -> typing.Any:
        """What is bound to a field, objects made; None if nothing is."""
        return self._made(self._bindings.get(("", name), {}).get(field))

    def reached(self, name: str, scope: str = "") -> dict[str, dict[str, str]]:
        """For each field of an object, all bindings that what is bound to it depends on.

        Args:
            name: of the object.
            scope: in which it is configured.
        Returns:
            {field: {"AdamW.beta_1": "0.9", ...}}, values as they are written.
        """
        found = {}
        for field, value in self._bindings.get((scope, name), {}).items():
            key = f"{scope}/{name}.{field}" if scope else f"{name}.{field}"
            found[field] = {key: _written(self._resolved(value))}
            for reference in _references(self._resolved(value)):
                inner_scope, _, inner = reference.name.rpartition("/")
                for below in self.reached(inner.rpartition(".")[2], inner_scope).values():
                    found[field] |= below
        return found

    def build(self, name: str, scope: str = "", **changes: typing.Any) -> typing.Any:
        """The object that the bindings of a name describe.

        Raises:
            BadInput: if it is none of this package's, or the values do not fit it.
        """
        bound = self._bindings.get((scope, name), {})
        try:
            fields = {field: self._made(value) for field, value in bound.items()} | changes
            fields.pop("name", None)  # every Linen module has it; it is no value of the user's
            return self._class(name)(**fields)
        # A field too many, or one too few; or what is made of itself.
        except (TypeError, RecursionError) as error:
            raise failures.BadInput(
                f"the configuration that was recorded makes no {name} ({error}); use the version "
                "of nest_dist that it was written with."
            ) from None

    def _resolved(self, value: typing.Any) -> typing.Any:
        if isinstance(value, _Macro):
            return self._resolved(self._macros.get(value.name))
        if isinstance(value, (list, tuple)) and not isinstance(value, _Reference):
            return type(value)(map(self._resolved, value))
        return value

    def plain(self) -> dict[str, bool | float | str]:
        """Every value by its full name: numbers as they are, all else as text."""
        return {
            "/".join(filter(None, [scope, f"{name}.{field}"])): self._plain(value)
            for (scope, name), fields in self._bindings.items()
            for field, value in fields.items()
        }

    def _take(self, statement: typing.Any) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            self._modules.append(statement.module)
        elif isinstance(statement, config_parser.BindingStatement):
            name = statement.selector.rpartition(".")[2]
            if statement.arg_name:
                bound = self._bindings.setdefault((statement.scope, name), {})
                bound[statement.arg_name] = statement.value
            else:
                self._macros[name] = statement.value

    def _made(self, value: typing.Any) -> typing.Any:
        if isinstance(value, _Macro):
            if value.name not in self._macros:
                raise failures.BadInput(
                    f"the configuration that was recorded gives %{value.name} no value; the "
                    "checkpoint is damaged."
                )
            return self._made(self._macros[value.name])
        if isinstance(value, _Reference):
            scope, _, name = value.name.rpartition("/")
            return self.build(name.rpartition(".")[2], scope)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._made, value))
        return value

    def _plain(self, value: typing.Any) -> bool | float | str:
        value = self._resolved(value)
        if isinstance(value, _Reference):
            return f"@{value.name}"
        if isinstance(value, (list, tuple)):
            return f"({', '.join(str(self._plain(each)) for each in value)})"
        return value if isinstance(value, (bool, int, float)) else str(value)

    def _class(self, name: str) -> typing.Any:
        for module in self._modules:
            if module.startswith(MODULES) and not module.startswith(NOT_MODULES):
                try:
                    found = getattr(importlib.import_module(module), name, None)
                except ImportError:  # a module of another version
                    continue
                if isinstance(found, type) and found.__module__ == module:
                    return found
        raise failures.BadInput(
            f"the configuration that was recorded uses {name}, which is none of nest_dist's own "
            "models or transforms; load it in a program of yours that makes them."
        )


class _Macro(typing.NamedTuple):
    name: str


class _Reference(typing.NamedTuple):
    name: str


def _references(value: typing.Any) -> Iterator[_Reference]:
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _references(inner)


def _written(value: typing.Any) -> str:
    if isinstance(value, _Reference):
        return f"@{value.name}()"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_written, value))})"
    return repr(value)


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        return _Reference(scoped_configurable_name)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)
