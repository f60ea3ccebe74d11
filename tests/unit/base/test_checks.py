import typing

import pytest
from support.refusals import refusal

from nest_dist.base import checks, settings
from nest_dist.base.checks import Within


@settings.frozen
class Settings:
    rate: float = 0.5
    steps: int = 3
    sides: tuple[int, ...] = (1, 2)
    kind: typing.Literal["a", "b"] = "a"
    first: typing.Literal[0, 1] = 0
    every: int | None = None
    shuffled: bool | None = None
    folder: str | None = None


def test_a_whole_number_is_a_float_but_not_the_other_way():
    assert Settings(rate=1).rate == 1
    with refusal("Settings.steps is 3.0, of type float; give a value of type int."):
        Settings(steps=3.0)


@pytest.mark.parametrize("field", ["rate", "steps", "every"])
def test_truth_is_no_number(field):
    with refusal(f"Settings.{field} is True, of type bool"):
        Settings(**{field: True})


def test_truth_is_no_number_in_tuples_and_literals():
    with refusal("Settings.sides is (1, True), of type tuple; give a value of type tuple[int, ..."):
        Settings(sides=(1, True))
    with refusal("Settings.first is True; give 0 or 1."):
        Settings(first=True)
    assert Settings(shuffled=True).shuffled


def test_a_text_with_a_nul_is_no_name_of_a_file():
    with refusal("Settings.folder is 'a\\x00b', with a NUL; leave it out."):
        Settings(folder="a\0b")


def test_members_of_tuples_literals_and_optionals_are_checked():
    with refusal("Settings.sides is (1, 'x'), of type tuple; give a value of type tuple[int, ...]"):
        Settings(sides=(1, "x"))
    with refusal("Settings.kind is 'c'; give 'a' or 'b'."):
        Settings(kind="c")
    with refusal("Settings.folder is 7, of type int"):
        Settings(folder=7)
    assert Settings(folder="here").folder == "here"


def test_a_class_in_place_of_an_instance_gets_a_hint():
    with refusal("write @Settings() to make one"):
        checks.type_of("Run.settings", Settings, Settings)


def test_ranges_name_value_and_limit():
    checks.in_range("x", 1, 0, 1)
    with refusal("x is 2; it must be in [0, 1]."):
        checks.in_range("x", 2, 0, 1)
    with refusal("x is 1; it must be in [0, 1)."):
        Within(0, 1, open_high=True).check("x", 1)
    with refusal("x is -1; it must be at least 0."):
        checks.in_range("x", -1, 0)


def test_what_is_no_number_is_outside_every_range():
    nan = float("nan")
    with refusal("x is nan; it must be at least 0."):
        checks.in_range("x", nan, 0)
    with refusal("x is nan; it must be in [0, 1)."):
        Within(0, 1, open_high=True).check("x", nan)
    with refusal("x is nan; it must be above 0."):
        Within(0, open_low=True).check("x", nan)
    for value in ((nan, 1.0), (0.5, nan)):
        with refusal("the smallest above 0 and at most 2."):
            checks.interval("x", value, 0, 2)


def test_an_open_end_is_excluded():
    Within(0, open_low=True).check("x", 1e-300)
    with refusal("x is 0; it must be above 0."):
        Within(0, open_low=True).check("x", 0)
    with refusal("x is 0; it must be in (0, 1)."):
        Within(0, 1, open_low=True, open_high=True).check("x", 0)


def test_division_names_the_nearest_that_fit():
    assert checks.divides("side", 12, 4, "patch", "change one") == 3
    with refusal("side is 10, not a multiple of patch (4); the nearest that fit are 8 or 12: fix."):
        checks.divides("side", 10, 4, "patch", "fix")
    with refusal("the nearest that fit are 4: fix."):
        checks.divides("side", 3, 4, "patch", "fix")


def test_unknown_names_get_suggestions_or_the_whole_list():
    with refusal("the command is 'trian', which is unknown; did you mean train?"):
        checks.one_of("the command", "trian", ["train", "evaluate"])
    with refusal("known are evaluate, train."):
        checks.one_of("the command", "xyz", ["train", "evaluate"])
