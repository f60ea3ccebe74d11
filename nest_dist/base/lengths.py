"""Lengths of parts of a run: a number of epochs, or a text with steps or a share of the run."""

import dataclasses
import re
import typing

from nest_dist.base import checks, failures

# 2.5 are epochs; "500 steps" and "5%", of the run, say their unit.
Length: typing.TypeAlias = float | str
_STEPS = re.compile(r"(\d{1,10}) steps?", re.ASCII)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?)%", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Within(checks.Within):
    """A range of epochs in the annotation of a `Length`, which also checks the form of a text."""

    share: bool = True  # whether a share of the run has a meaning

    def check(self, name: str, value: Length) -> None:
        forms = "'500 steps' or '5%'" if self.share else "'500 steps'"
        remedy = f"give a number of epochs (float), or a text such as {forms}"
        if isinstance(value, bool):
            raise failures.BadInput(f"{name} is {value}, of type bool; {remedy}.")
        if isinstance(value, float | int):
            super().check(name, value)
        elif not _STEPS.fullmatch(value):
            percent = _SHARE.fullmatch(value)
            if self.share and percent and float(percent[1]) <= 100:
                return
            raise failures.BadInput(f"{name} is {value!r}, which is no length; {remedy}.")


def in_steps(length: Length, steps_per_epoch: float, num_steps: int = 0) -> int:
    """The nearest number of steps.

    Args:
        length: in one of these forms.
        steps_per_epoch: need not be an integer.
        num_steps: of the run, for a share of it.
    """
    if not isinstance(length, str):
        return round(length * steps_per_epoch)
    if steps := _STEPS.fullmatch(length):
        return int(steps[1])
    return round(float(length.removesuffix("%")) / 100 * num_steps)


def text(length: Length) -> str:
    """For messages: 2 becomes "2 epochs"."""
    return length if isinstance(length, str) else f"{length:g} epochs"
