"""The models that ship by name: one for each file in gin/model/."""

import functools
import typing

from nest_dist.base import failures
from nest_dist.commands import recorded, shipped
from nest_dist.model import nest

# What describes a model; every Linen module also has a parent and a name.
FIELDS = tuple(name for name in nest.NesT.__dataclass_fields__ if name not in ("parent", "name"))


@functools.cache
def models() -> dict[str, nest.NesT]:
    """Every model by its name, with the number of classes that the paper's has."""
    return {
        path.stem: recorded.Recorded(
            path.read_text(encoding="utf-8"),
            num_classes=10 if path.stem.startswith("cifar") else 1000,
        ).build("NesT")
        for path in sorted((shipped.folder() / "model").glob("*.gin"))
    }


def with_fields(model: nest.NesT, fields: dict[str, typing.Any]) -> nest.NesT:
    """The model with other values for some fields.

    Raises:
        BadInput: for an unknown field, or a value that does not fit.
    """
    for name in fields:
        if name not in FIELDS:
            raise failures.BadInput(f"{name} is no field of NesT; there are {', '.join(FIELDS)}.")
    return model.clone(**fields) if fields else model
