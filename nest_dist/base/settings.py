"""Frozen dataclasses for gin: their fields are checked, and say what a change means for a run."""

import dataclasses
import enum
import typing
from collections.abc import Iterator

import gin

from nest_dist.base import checks, failures

# No field needs a larger number; "1e400" in gin is infinite.
LARGEST = 1e15

Class = typing.TypeVar("Class", bound=type)


class Effect(enum.Enum):
    """The effect of a changed field on a run that resumes, in order of severity."""

    NONE = "the run stays the same"
    CHANGES = "the run goes on differently"
    ANOTHER_RUN = "the checkpoint belongs to another run"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a changed field."""

    effect: Effect = Effect.CHANGES  # on a run that resumes from a checkpoint
    in_step: bool = True  # whether the compiled training step depends on the field
    throughout: bool = False  # whether all below the field means the same, whatever it says itself


def means(
    effect: Effect, *, in_step: bool | None = None, throughout: bool = False, **field: typing.Any
) -> typing.Any:
    """A field of a dataclass, with the meaning of its change; `field` as of `dataclasses.field`.

    A field without it inherits the meaning of the field that holds its object. A field without
    `in_step` inherits that value alone. So `RandAugment.magnitude` means what
    `TrainingData.transforms` means, which has none, and so what `Run.data` does: another run.
    """
    metadata: dict[str, object] = {"effect": effect, "throughout": throughout}
    metadata |= {} if in_step is None else {"in_step": in_step}
    return dataclasses.field(metadata=metadata, **field)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, means))
def register(cls: Class) -> Class:
    """A frozen dataclass under its name in gin, checked by `check` whenever it is made.

    A `__post_init__` of its own, or of its base, follows those checks.
    """
    return gin.register(frozen(cls))


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, means))
def frozen(cls: Class) -> Class:
    """As `register`, without gin."""
    own = getattr(cls, "__post_init__", None)

    def post_init(self: object) -> None:
        check(self)
        if own is not None:
            own(self)

    cls.__post_init__ = post_init  # type: ignore[attr-defined]
    made: Class = dataclasses.dataclass(frozen=True)(cls)  # type: ignore[assignment]
    return made


def fields(owner: typing.Any) -> Iterator["dataclasses.Field[typing.Any]"]:
    """The fields that gin can bind, of a dataclass or Linen module or an instance of one."""
    cls = owner if isinstance(owner, type) else type(owner)
    # Every Linen module also has the fields `parent` and `name`, which Linen sets itself.
    is_module = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    for field in dataclasses.fields(cls):
        if field.init and not (is_module and field.name in ("parent", "name")):
            yield field


def check(instance: object) -> None:
    """Checks `fields` against the types and ranges of their annotations: gin checks none.

    Raises:
        BadInput: naming the field, its value and the limit.
    """
    cls = type(instance)
    hints, annotations = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
    for field in fields(instance):
        name, value = f"{cls.__name__}.{field.name}", getattr(instance, field.name)
        checks.type_of(name, value, hints[field.name])
        for member in checks.members(value):
            if isinstance(member, int | float | str):
                for within in _ranges(annotations[field.name]):
                    within.check(name, typing.cast(float, member))  # or a text, of a length
            if isinstance(member, str) and "\0" in member:
                raise failures.BadInput(f"{name} is {member!r}, with a NUL; leave it out.")
            if isinstance(member, int | float) and not abs(member) < LARGEST:
                raise failures.BadInput(
                    f"{name} is {str(member)[:20]}; give a number below {LARGEST:.0e}."
                )


def of_field(field: "dataclasses.Field[typing.Any]", holder: Meaning) -> Meaning:
    """The meaning of a field, from its metadata and from the field that holds its object."""
    return holder if holder.throughout else dataclasses.replace(holder, **field.metadata)


def _ranges(annotation: object) -> Iterator[checks.Within]:
    """The ranges in an annotation, or in a member of a union."""
    if isinstance(annotation, checks.Within):
        yield annotation
    for member in typing.get_args(annotation):
        yield from _ranges(member)
