"""The models that ship by name: one for each file in gin/model/."""

import functools
from collections.abc import Mapping

from nest_dist.base import failures, settings
from nest_dist.config import shipped, strict_gin
from nest_dist.model import nest

FIELDS = tuple(field.name for field in settings.fields(nest.NesT))


@functools.cache
def models() -> dict[str, nest.NesT]:
    """Every model by its name, with the number of classes that the paper's has."""
    return {
        path.stem: strict_gin.build(
            "NesT",
            f"{path.read_text(encoding='utf-8')}\n"
            f"num_classes = {10 if path.stem.startswith('cifar') else 1000}\n",
        )
        for path in sorted((shipped.folder() / "model").glob("*.gin"))
    }


def with_fields(model: nest.NesT, fields: Mapping[str, object]) -> nest.NesT:
    """The model with other values for some fields."""
    for name in fields:
        if name not in FIELDS:
            raise failures.BadInput(f"{name} is no field of NesT; known are {', '.join(FIELDS)}.")
    return model.clone(**fields) if fields else model
