"""What a safetensors file of ours says about itself: its model, the run behind it, its classes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from nest_dist.base import checks, failures
from nest_dist.commands import variants
from nest_dist.model import nest

_MODEL = "nest_dist.model"
_CONFIGURATION = "nest_dist.configuration"
_CLASS_NAMES = "nest_dist.class_names"


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known besides the weights.

    Attributes:
        model: None if only the weights themselves tell it.
        configuration: the text of the run that trained them, if it is known.
        class_names: in the order of the logits; empty if they are not known.
    """

    model: nest.NesT | None
    configuration: str | None = None
    class_names: tuple[str, ...] = ()

    def texts(self) -> dict[str, str]:
        """For the metadata of a safetensors file."""
        texts = {"format": "flax"}
        if self.model is not None:
            fields = {name: getattr(self.model, name) for name in variants.FIELDS}
            texts[_MODEL] = json.dumps(fields)
        if self.configuration is not None:
            texts[_CONFIGURATION] = self.configuration
        if self.class_names:
            texts[_CLASS_NAMES] = json.dumps(self.class_names)
        return texts


def read(path: pathlib.Path, texts: Mapping[str, str]) -> Description:
    """The description that `Description.texts` gave; of other files, an empty one.

    Raises:
        BadInput: if the texts make no sense.
    """
    try:
        model = nest.NesT(**json.loads(texts[_MODEL])) if _MODEL in texts else None
        class_names = json.loads(texts.get(_CLASS_NAMES, "[]"))
        checks.type_of("class_names", class_names, list[str])
        if model is not None and len(class_names) not in (0, model.num_classes):
            raise ValueError(f"{len(class_names)} class names for {model.num_classes} classes")
    except (ValueError, TypeError) as error:
        raise failures.BadInput(
            f"{path} describes its model wrongly ({failures.first_line(error)}); write it again "
            "with `nest-dist convert`."
        ) from None
    return Description(model, texts.get(_CONFIGURATION), tuple(class_names))
