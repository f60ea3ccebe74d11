"""Checks of what users configure: a `BadInput` names the value, the limit and the remedy."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator

import typeguard

from nest_dist.base import failures

LONGEST_SHOWN = 100  # characters of a value in an error text


@dataclasses.dataclass(frozen=True)
class Within:
    """A range of numbers; in the annotation of a field, `Annotated[float, Within(0, 1)]`, its own.

    It holds for each number of a tuple.
    """

    low: float  # the smallest
    high: float = math.inf  # the largest
    open_high: bool = False  # whether `high` itself is too large
    open_low: bool = False  # whether `low` itself is too small

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.open_low else 'at least'} {self.low}"
        opening, closing = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {opening}{self.low}, {self.high}{closing}"

    def check(self, name: str, value: float) -> None:
        """Refuses a number outside, and NaN."""
        # Every comparison with NaN is false, so this form refuses NaN.
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below):
            raise failures.BadInput(f"{name} is {value}; it must be {self}.")


def type_of(name: str, value: typing.Any, annotation: typing.Any) -> None:
    """Checks one value against an annotation; `True` and `False` are no numbers."""
    wanted = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    every_item = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        if any(isinstance(it, bool) for it in members(value)) and not _takes_bools(annotation):
            raise typeguard.TypeCheckError("bool is no number")
        typeguard.check_type(value, annotation, collection_check_strategy=every_item)
    except typeguard.TypeCheckError:
        if values := _literals(annotation):
            raise failures.BadInput(
                f"{name} is {_shown(value)}; give {' or '.join(values)}."
            ) from None
        hint = f"; write @{value.__name__}() to make one" if isinstance(value, type) else ""
        raise failures.BadInput(
            f"{name} is {_shown(value)}, of type {type(value).__name__}; give a value of type "
            f"{wanted.replace('typing.', '')}{hint}."
        ) from None


def members(value: typing.Any) -> Iterator[typing.Any]:
    """What a tuple holds, tuples in it included; of any other value the value itself."""
    for member in value if isinstance(value, tuple) else ():
        yield from members(member)
    if not isinstance(value, tuple):
        yield value


def _shown(value: typing.Any) -> str:
    """A value in a line, an object as gin names it."""
    if isinstance(value, type) and dataclasses.is_dataclass(value):
        return f"@{value.__name__}"
    if dataclasses.is_dataclass(value):
        return f"@{type(value).__name__}()"
    if isinstance(value, (tuple, list)):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        end = "," * (len(value) == 1 and isinstance(value, tuple))
        return f"{opening}{', '.join(map(_shown, value))}{end}{closing}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _takes_bools(annotation: typing.Any) -> bool:
    return annotation in (bool, typing.Any) or any(map(_takes_bools, typing.get_args(annotation)))


def _literals(annotation: typing.Any) -> list[str]:
    """The values of a Literal, also of one that may be None; none of any other annotation."""
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [repr(value) for value in members]
    if any(typing.get_origin(member) is typing.Literal for member in members):
        return [text for member in members for text in (_literals(member) or ["None"])]
    return []


def in_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Checks `low <= value <= high`, which excludes NaN."""
    Within(low, high).check(name, value)


def interval(name: str, value: tuple[float, float], low: float, high: float = math.inf) -> None:
    """Checks that `value` is (a, b) with `low < a <= b <= high`."""
    if not low < value[0] <= value[1] <= high:
        below = "" if high == math.inf else f" and at most {high}"
        raise failures.BadInput(
            f"{name} is {value}; give (smallest, largest), the smallest above {low}{below}."
        )


def divides(name: str, value: int, divisor: int, divisor_name: str, remedy: str) -> int:
    """The quotient of an exact division; else the nearest values that fit, and `remedy`."""
    quotient, remainder = divmod(value, divisor)
    if remainder:
        below, above = quotient * divisor, (quotient + 1) * divisor
        nearest = f"{below} or {above}" if below else str(above)
        raise failures.BadInput(
            f"{name} is {value}, not a multiple of {divisor_name} ({divisor}); "
            f"the nearest that fit are {nearest}: {remedy}."
        )
    return quotient


def divisor_of(name: str, value: int, dividend: int, dividend_name: str, remedy: str) -> None:
    """Checks that `value` divides `dividend`; else names the values that do, and `remedy`."""
    if dividend % value:
        fitting = [str(number) for number in range(1, dividend + 1) if dividend % number == 0]
        raise failures.BadInput(
            f"{name} is {value}; it must divide {dividend_name} ({dividend}): set it to "
            f"{', '.join(fitting)}, or {remedy}."
        )


def one_of(name: str, value: str, known: Iterable[str], remedy: str = "") -> None:
    """Checks that `value` is one of the known names; else gives the similar ones, or all."""
    known = sorted(known)
    if value not in known:
        raise failures.BadInput(
            f"{name} is {value!r}, which is unknown; {suggestion(value, known)}{remedy}"
        )


def suggestion(value: str, known: Iterable[str]) -> str:
    """'did you mean ...?' for the similar names, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(known) if known else 'none'}."
