"""Checks of what users configure: each error names the value, the limit and the remedy."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable

import typeguard

from nest_dist.base import failures


def types(instance: typing.Any, skip: Iterable[str] = ()) -> None:
    """Checks every field of a dataclass against its annotation; gin itself checks none.

    Args:
        instance: a dataclass, usually `self` in `__post_init__`.
        skip: names of fields that are checked elsewhere.
    Raises:
        BadInput: naming the first field whose value does not fit.
    """
    cls = type(instance)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(instance):
        if field.init and field.name not in skip:
            type_of(
                f"{cls.__name__}.{field.name}", getattr(instance, field.name), hints[field.name]
            )


def type_of(name: str, value: typing.Any, annotation: typing.Any) -> None:
    """Checks one value against an annotation.

    Raises:
        BadInput: if `value` does not fit `annotation`; `True` and `False` are no numbers.
    """
    wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    wanted = wanted or str(annotation).replace("typing.", "")
    numbers_only = annotation in (int, float)
    try:
        if numbers_only and isinstance(value, bool):
            raise typeguard.TypeCheckError("bool is no number")
        typeguard.check_type(
            value,
            annotation,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError:
        hint = f"; write @{value.__name__}() to make one" if isinstance(value, type) else ""
        raise failures.BadInput(
            f"{name} is {value!r}, of type {type(value).__name__}; give a value of type "
            f"{wanted}{hint}."
        ) from None


def in_range(
    name: str,
    value: float,
    low: float,
    high: float = float("inf"),
    *,
    open_high: bool = False,
) -> None:
    """Checks `low <= value <= high` (`< high` with `open_high`).

    Raises:
        BadInput: naming value and range.
    """
    if value < low or value > high or (open_high and value == high):
        if high == float("inf"):
            limit = f"at least {low}"
        else:
            limit = f"in [{low}, {high}{')' if open_high else ']'}"
        raise failures.BadInput(f"{name} is {value}; it must be {limit}.")


def interval(name: str, value: tuple[float, float], low: float, high: float = float("inf")) -> None:
    """Checks that `value` is (a, b) with `low < a <= b <= high`.

    Raises:
        BadInput: naming value and range.
    """
    if not low < value[0] <= value[1] <= high:
        below = "" if high == float("inf") else f" and at most {high}"
        raise failures.BadInput(
            f"{name} is {value}; give (smallest, largest), the smallest above {low}{below}."
        )


def divides(name: str, value: int, divisor: int, divisor_name: str, remedy: str) -> int:
    """The quotient of an exact division.

    Raises:
        BadInput: naming the nearest values that fit, and `remedy`.
    """
    quotient, remainder = divmod(value, divisor)
    if remainder:
        below, above = quotient * divisor, (quotient + 1) * divisor
        nearest = f"{below} or {above}" if below else str(above)
        raise failures.BadInput(
            f"{name} is {value}, not a multiple of {divisor_name} ({divisor}); "
            f"the nearest that fit are {nearest}: {remedy}."
        )
    return quotient


def divisor_of(name: str, value: int, whole: int, whole_name: str, remedy: str) -> None:
    """Checks that `value` divides `whole` exactly.

    Raises:
        BadInput: naming the values that do, and `remedy`.
    """
    if whole % value:
        fitting = [str(divisor) for divisor in range(1, whole + 1) if whole % divisor == 0]
        raise failures.BadInput(
            f"{name} is {value}; it must divide {whole_name} ({whole}): set it to "
            f"{', '.join(fitting)}, or {remedy}."
        )


def one_of(name: str, value: str, known: Iterable[str], remedy: str = "") -> None:
    """Checks that `value` is known.

    Raises:
        BadInput: with the close names, or else all of them.
    """
    known = sorted(known)
    if value not in known:
        raise failures.BadInput(
            f"{name} is {value!r}, which is unknown; {suggestion(value, known)}{remedy}"
        )


def suggestion(value: str, known: Iterable[str]) -> str:
    """'did you mean ...?' for the close names, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(known) if known else 'none'}."
