"""Everything that can be configured: parameters, defaults, ranges, and meanings from docstrings."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Sequence

from nest_dist.base import checks, settings
from nest_dist.config import gin_state

PACKAGE = "nest_dist."


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field that gin can bind."""

    name: str
    type: str  # with its range
    default: str | None  # as gin writes it; None if it has to be bound
    meaning: str


@dataclasses.dataclass(frozen=True)
class Configurable:
    """One class that gin can configure."""

    name: str  # in gin
    room: str  # of the package, such as "data"; the module of a class of the user's own
    summary: str
    parameters: tuple[Parameter, ...]


def configurables(search: str = "") -> list[Configurable]:
    """Everything that imported modules register, by room and name.

    Args:
        search: a text; without regard to case, one of the name, the summary or a parameter has it.
            A configurable that is named by it keeps all parameters, others those with the text.
    """
    listed = [
        _configurable(name, cls)
        for name, cls in gin_state.registered().items()
        if dataclasses.is_dataclass(cls) and isinstance(cls, type)
    ]
    chosen = (_searched(each, search.lower()) for each in listed)
    return sorted(filter(None, chosen), key=lambda each: (each.room, each.name))


def default_text(field: "dataclasses.Field[typing.Any]") -> str | None:
    """The default of a field in gin's syntax; None if it has none."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None


def _configurable(name: str, cls: type) -> Configurable:
    module = cls.__module__
    own = module.startswith(PACKAGE)
    meanings = _meanings(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = tuple(
        Parameter(
            field.name,
            _type_text(hints.get(field.name)),
            default_text(field),
            meanings.get(field.name, ""),
        )
        for field in settings.fields(cls)
    )
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    room = module.removeprefix(PACKAGE).partition(".")[0] if own else module
    return Configurable(name, room, summary, parameters)


def _searched(configurable: Configurable, text: str) -> Configurable | None:
    if text in f"{configurable.name} {configurable.summary}".lower():
        return configurable
    fitting = tuple(
        parameter
        for parameter in configurable.parameters
        if text in f"{configurable.name}.{parameter.name} {parameter.meaning}".lower()
    )
    return dataclasses.replace(configurable, parameters=fitting) if fitting else None


def _meanings(cls: type) -> dict[str, str]:
    """What the sections `Attributes` of a class and its bases say of each field."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith(("flax.", "builtins")):
            continue
        name = ""
        for line in _section(inspect.cleandoc(base.__doc__ or "").splitlines(), "Attributes:"):
            if match := re.match(r"    (\w+): (.*)", line):
                name, meanings[match[1]] = match[1], match[2]
            elif name:
                meanings[name] += f" {line.strip()}"
    return meanings


def _section(lines: Sequence[str], title: str) -> Iterator[str]:
    inside = False
    for line in lines:
        if line and not line.startswith(" "):
            inside = line == title
        elif inside and line:
            yield line


def _type_text(annotation: typing.Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        ranges = [str(each) for each in extras if isinstance(each, checks.Within)]
        return " ".join([_type_text(inner), *ranges])
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(map(_type_text, arguments))
    if typing.get_origin(annotation) is tuple:
        return f"({', '.join('...' if each is ... else _type_text(each) for each in arguments)})"
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
