"""The model that weights belong to, by their names and shapes."""

from collections.abc import Mapping

from nest_dist.base import failures
from nest_dist.model import nest
from nest_dist.pretrained import weights
from nest_dist.pretrained.formats import naming


def recognise(
    shapes: naming.Shapes,
    known: Mapping[str, nest.NesT],
    hints: Mapping[str, object] | None = None,
) -> nest.NesT:
    """The model that weights of these names and shapes belong to.

    GELU has no parameters: it is the one of the format's own code, unless `hints` say otherwise.

    Args:
        known: models by name, for what a format does not tell: heads in timm's, and the depths
            in the official one where all levels have the same width.
        hints: fields of `NesT` that are known otherwise, and win.
    Raises:
        BadInput: if they belong to no NesT, or do not tell enough.
    """
    form = weights.format_of(shapes)
    try:
        fields = weights.FORMATS[form].fields(shapes)
    # A name that is missing, or a shape of another rank.
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise failures.BadInput(
            f"the {form} weights are incomplete: {len(shapes)} names, without all those of a first "
            "level; give the whole checkpoint of one NesT."
        ) from None
    num_layers = fields.pop("num_layers")
    fields |= {"gelu": weights.FORMATS[form].GELU, **(hints or {})}
    told = {name: fields[name] for name in weights.ARCHITECTURE if fields[name] is not None}
    for name in set(weights.ARCHITECTURE) - told.keys():
        fitting = (model for model in known.values() if sum(model.block_repeats) == num_layers)
        model = next((model for model in fitting if _has(model, told)), None)
        if model is None:
            raise failures.BadInput(
                f"the weights do not tell NesT.{name}, and their shapes are those of none of the "
                f"known models ({', '.join(known)}); give it, as in NesT.{name} = "
                f"{'(3, 3)' if name == 'block_repeats' else 3}."
            )
        fields[name] = getattr(model, name)
    return nest.NesT(**fields)


def name_of(model: nest.NesT, known: Mapping[str, nest.NesT]) -> str | None:
    """The published name of a model, whatever its image and classes; None if it has none."""
    fields = {name: getattr(model, name) for name in weights.ARCHITECTURE}
    return next((name for name, other in known.items() if _has(other, fields)), None)


def _has(model: nest.NesT, fields: Mapping[str, object]) -> bool:
    return all(getattr(model, name) == value for name, value in fields.items())
