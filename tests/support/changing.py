"""A run with other values below it."""

import dataclasses


def changed(run, values):
    """A copy of a dataclass with other values, by path: {"step.inputs.mixing": None}."""
    for path, value in values.items():
        first, _, rest = path.partition(".")
        below = changed(getattr(run, first), {rest: value}) if rest else value
        run = dataclasses.replace(run, **{first: below})
    return run
