"""A run as plain JSON: stored beside its checkpoints, for every later command.

An object is {"class": "nest_dist.model.nest.NesT", "fields": {"dim": 96, ...}}, a tuple a list, and
numbers, texts, booleans and None are themselves.
"""

import contextlib
import dataclasses
import importlib
import math
import sys
import typing
from collections.abc import Callable, Iterator, Mapping

from nest_dist.base import failures, files, settings

Json: typing.TypeAlias = typing.Any
NAME = "run.json"


def dump(value: object) -> Json:
    """The JSON of a configured object.

    Raises:
        BadInput: for a number that JSON does not have.
    """
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise failures.BadInput(f"a bound value is {value}; give a finite number.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: dump(getattr(value, field.name)) for field in settings.fields(value)}
        return _object(type(value), fields)
    # A user's own function, or an instance of a user's class whose fields are unknown.
    return _object(value if callable(value) and hasattr(value, "__qualname__") else type(value), {})


def load(document: Json, trusted: Callable[[str], bool] = lambda module: True) -> typing.Any:
    """The object that a JSON of `dump` describes.

    Args:
        trusted: whether a class of this module may be made; importing a module runs it.
    Raises:
        BadInput: if the JSON describes no object, or one that is not trusted.
    """
    if isinstance(document, list):
        return tuple(load(item, trusted) for item in document)
    if not isinstance(document, dict):
        return document
    try:
        module, _, name = document["class"].rpartition(".")
        fields = {field: load(value, trusted) for field, value in document["fields"].items()}
        if not trusted(module):
            raise failures.BadInput(
                f"the configuration uses {document['class']}, which is none of nest_dist's own "
                "models or transforms; load it in a program of yours that makes them."
            )
        cls = getattr(importlib.import_module(module), name)
        if not (isinstance(cls, type) and cls.__module__ == module):
            raise TypeError(f"{document['class']} is no class")
        return cls(**fields)
    except (KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise failures.BadInput(
            f"the configuration cannot be read ({failures.first_line(error)}); use the version of "
            "nest_dist that it was written with."
        ) from None


def read(path: typing.Any) -> Json:
    """The JSON of a run in a file that `dump` describes.

    Raises:
        BadInput: if it holds anything else.
    """
    with contextlib.suppress(ValueError):
        document = files.parsed(path.read_bytes())
        if isinstance(document, dict) and {"class", "fields"} <= document.keys():
            return {"class": document["class"], "fields": document["fields"]}
    raise failures.BadInput(
        f"{path} describes no run; start `nest-dist train` in that folder, which writes it anew."
    )


def select(document: Json, *path: str | int) -> Json:
    """The JSON at a path of fields and of positions in tuples."""
    try:
        for step in path:
            document = document[step] if isinstance(step, int) else document["fields"][step]
    except (KeyError, IndexError, TypeError):
        raise failures.BadInput(
            f"the configuration has no {'.'.join(map(str, path))}; use the version of nest_dist "
            "that it was written with."
        ) from None
    return document


@dataclasses.dataclass(frozen=True)
class Setting:
    """One bound value."""

    path: str  # from the run, such as "Run.step.optimizer.beta_1"
    binding: str  # its name in gin, such as "AdamW.beta_1"; the path if several objects share it
    value: Json
    meaning: settings.Meaning

    @property
    def text(self) -> str:
        """The value in gin's syntax; an object by its name."""
        return text(self.value)


def flatten(document: Json) -> dict[str, Setting]:
    """Every value of a run by its path."""
    walked = list(_walk(document, "Run", settings.Meaning()))
    bindings = [setting.binding for setting in walked]
    return {
        setting.path: setting
        if bindings.count(setting.binding) == 1
        else dataclasses.replace(setting, binding=setting.path)
        for setting in walked
    }


def _walk(document: Json, path: str, holder: settings.Meaning) -> Iterator[Setting]:
    name = _short(document["class"])
    known = _fields(document["class"])
    for field, value in (_defaults(known) | document["fields"]).items():
        meaning = settings.of_field(known[field], holder) if field in known else holder
        yield Setting(f"{path}.{field}", f"{name}.{field}", value, meaning)
        for position, item in objects(value):
            yield from _walk(item, f"{path}.{field}{position}", meaning)


def objects(value: Json) -> Iterator[tuple[str, Json]]:
    """The object, or those in a list of several with their positions such as "[1]"."""
    items = value if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        if is_object(item):
            yield f"[{index}]" if len(items) > 1 else "", item


def _defaults(known: Mapping[str, "dataclasses.Field[typing.Any]"]) -> dict[str, Json]:
    """Of fields that an earlier version did not write, since it had none of them."""
    simple = {name: field.default for name, field in known.items()}
    return {name: dump(value) for name, value in simple.items() if value is not dataclasses.MISSING}


def _fields(name: str) -> dict[str, "dataclasses.Field[typing.Any]"]:
    """The fields of a class that is imported already: reading a file must not run a module."""
    module, _, cls_name = name.rpartition(".")
    cls = getattr(sys.modules.get(module), cls_name, None)
    if not dataclasses.is_dataclass(cls):
        return {}
    return {field.name: field for field in settings.fields(cls)}


def _object(cls: typing.Any, fields: dict[str, Json]) -> Json:
    return {"class": class_name(cls), "fields": fields}


def class_name(cls: typing.Any) -> str:
    """A class, or a function, as JSON names it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_object(value: Json) -> bool:
    """Whether this is the JSON of an object."""
    return isinstance(value, dict) and value.keys() == {"class", "fields"}


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def text(value: Json) -> str:
    """A value in gin's syntax; an object by its name."""
    if is_object(value):
        return f"@{_short(value['class'])}()"
    if isinstance(value, list):
        return f"({', '.join(map(text, value))}{',' * (len(value) == 1)})"
    return repr(value)
