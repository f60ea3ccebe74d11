"""Classes that gin fills in: checked, frozen, clear about what a change means."""

import dataclasses
import typing

import pytest

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, Meaning, means


@settings.frozen
class Inner:
    rate: typing.Annotated[float, Within(0, 1, open_high=True)] | None = None
    threads: typing.Annotated[int, Within(1)] = means(Effect.NONE, default=1)
    areas: typing.Annotated[tuple[tuple[float, float], ...], Within(0)] = ()
    sides: typing.Annotated[int | tuple[int, ...], Within(1, 9)] = (4, 4)


@settings.frozen
class Outer:
    length: typing.Annotated[float, Within(0, open_low=True)]
    inner: Inner = means(Effect.ANOTHER_RUN, in_step=False, default_factory=Inner)

    def __post_init__(self):
        if self.length == 13:
            raise failures.BadInput("Outer.length is 13; choose another.")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Inner(rate=1.0), r"Inner.rate is 1.0; it must be in \[0, 1\)."),
        (lambda: Inner(rate=float("nan")), r"Inner.rate is nan; it must be in \[0, 1\)."),
        (lambda: Inner(threads=0), "Inner.threads is 0; it must be at least 1."),
        (lambda: Inner(sides=(3, 10)), r"Inner.sides is 10; it must be in \[1, 9\]."),
        (lambda: Inner(areas=((0.0, -1.0),)), r"Inner.areas is -1.0; it must be at least 0."),
        (lambda: Inner(sides=0), r"Inner.sides is 0; it must be in \[1, 9\]."),
        (lambda: Inner(threads=1.5), "Inner.threads is 1.5, of type float; give a value of type"),
        (lambda: Inner(threads=True), "Inner.threads is True, of type bool; give a value of type"),
        (lambda: Outer(0.0), "Outer.length is 0.0; it must be above 0."),
        (lambda: Outer(1.0, inner=3), "Outer.inner is 3, of type int; give a value of type Inner"),
        (lambda: Outer(13), "Outer.length is 13; choose another."),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_named(make, text):
    with pytest.raises(failures.BadInput, match=text):
        make()


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().threads = 2


def test_a_field_means_what_it_says_or_what_its_holder_means():
    outer = {field.name: settings.of_field(field, Meaning()) for field in settings.fields(Outer)}
    assert outer["length"] == Meaning(Effect.CHANGES, in_step=True)
    assert outer["inner"] == Meaning(Effect.ANOTHER_RUN, in_step=False)
    inner = {it.name: settings.of_field(it, outer["inner"]) for it in settings.fields(Inner)}
    assert inner["rate"] == Meaning(Effect.ANOTHER_RUN, in_step=False)
    assert inner["threads"] == Meaning(Effect.NONE, in_step=False)
    throughout = Meaning(Effect.CHANGES, in_step=False, throughout=True)
    assert all(settings.of_field(it, throughout) is throughout for it in settings.fields(Inner))
