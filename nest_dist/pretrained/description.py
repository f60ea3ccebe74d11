"""The metadata of our safetensors files: model, run and class names."""

import itertools
import json
import pathlib
import typing
from collections.abc import Mapping, Sequence

from nest_dist.base import checks, failures, files
from nest_dist.config import run_json
from nest_dist.model import nest
from nest_dist.pretrained import variants

_MODEL = "nest_dist.model"
_RUN = "nest_dist.run"
_CLASS_NAMES = "nest_dist.class_names"
_DEEPEST = 32  # levels of JSON
# Of version 0.1, as gin.
_OLD_CONFIGURATION = "nest_dist.configuration"


def texts(
    model: nest.NesT, run: run_json.Json | None = None, class_names: Sequence[str] = ()
) -> dict[str, str]:
    """The metadata of a safetensors file: the model of its weights, the run that trained them."""
    fields = {name: getattr(model, name) for name in variants.FIELDS}
    values = {_MODEL: fields, _RUN: run, _CLASS_NAMES: class_names}
    described = {name: json.dumps(value) for name, value in values.items() if value}
    return {"format": "flax", **described}


def read(
    path: pathlib.Path, metadata: Mapping[str, str]
) -> tuple[nest.NesT | None, run_json.Json | None, tuple[str, ...]]:
    """Model, run and class names as `texts` takes them; None or empty if `path` does not tell.

    Raises:
        BadInput: if the metadata is malformed or describes no NesT.
    """
    if _OLD_CONFIGURATION in metadata:
        raise failures.BadInput(
            f"{path} was written by nest_dist 0.1, whose configuration this version does not read; "
            "convert it to timm's or the official format with that version."
        )
    try:
        model = nest.NesT(**_parsed(metadata[_MODEL])) if _MODEL in metadata else None
        run = _parsed(metadata.get(_RUN, "null"))
        class_names = _parsed(metadata.get(_CLASS_NAMES, "[]"))
        checks.type_of("class_names", class_names, list[str])
        if model is not None and len(class_names) not in (0, model.num_classes):
            raise ValueError(f"{len(class_names)} class names for {model.num_classes} classes")
    except (ValueError, TypeError) as error:
        raise failures.BadInput(
            f"{path} describes its model wrongly ({failures.first_line(error)}); write it again "
            "with `nest-dist convert`."
        ) from None
    return model, run, tuple(class_names)


def _parsed(text: str) -> typing.Any:
    """JSON that is not nested deeper than a run is."""
    value = files.parsed(text)
    level = [value]
    for _ in range(_DEEPEST):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return value
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = list(itertools.chain.from_iterable(inner))
    raise ValueError(f"JSON of more than {_DEEPEST} levels")


def configured(run: run_json.Json, *path: str | int) -> typing.Any:
    """The object at a path of fields of a run, which may come from anyone.

    Raises:
        BadInput: for a class that weights may not name, such as a source, which opens files.
    """
    return run_json.load(run_json.select(run, *path), trusted)


def trusted(module: str) -> bool:
    """Whether weights from anyone may name a class of this module."""
    return module.startswith(("nest_dist.model.", "nest_dist.train.", "nest_dist.data.transforms."))
