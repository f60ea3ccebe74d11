"""Lengths of parts of a run: a number of epochs, or a text with steps or a share of the run."""

import re
import typing

from nest_dist.base import failures

# 2.5 are epochs; "500 steps" and "5%", of the run, say their unit.
Length: typing.TypeAlias = float | str
_STEPS = re.compile(r"(\d{1,10}) steps?", re.ASCII)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?)%", re.ASCII)


def check(name: str, length: Length, share: bool = True) -> None:
    """Refuses a text that is no length; `share` says whether one of the run has a meaning.

    Raises:
        BadInput: naming the forms.
    """
    forms = "'500 steps' or '5%'" if share else "'500 steps'"
    remedy = f"give a number of epochs (float), or a text such as {forms}"
    if isinstance(length, bool):
        raise failures.BadInput(f"{name} is {length}, of type bool; {remedy}.")
    if not isinstance(length, str) or _STEPS.fullmatch(length):
        return
    percent = _SHARE.fullmatch(length)
    if not (share and percent and float(percent[1]) <= 100):
        raise failures.BadInput(f"{name} is {length!r}, which is no length; {remedy}.")


def in_steps(length: Length, steps_per_epoch: float, num_steps: int = 0) -> int:
    """The nearest number of steps.

    Args:
        length: as `check` passes it.
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
