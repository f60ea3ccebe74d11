"""What a changed configuration means for a run that goes on from a checkpoint."""

import dataclasses

from nest_dist.base import failures
from nest_dist.base.settings import Effect
from nest_dist.config import run_json

_BY_SEVERITY = list(Effect)


@dataclasses.dataclass(frozen=True)
class Change:
    """One binding with two values; None where the run does not have it."""

    binding: str
    before: str | None
    after: str | None
    effect: Effect

    def __str__(self) -> str:
        before, after = ("nothing" if it is None else it for it in (self.before, self.after))
        return f"{self.binding} was {before}, is {after}: {self.effect.value}"


def between(before: run_json.Json, after: run_json.Json) -> list[Change]:
    """The settings in which two runs differ, in alphabetical order of their bindings.

    The run before may lack what a later version can configure; the default then changes nothing.
    """
    old, new = run_json.flatten(before), run_json.flatten(after)
    changes = []
    for path in old.keys() | new.keys():
        sides = [side[path] for side in (new, old) if path in side]
        was, now = (side[path].text if path in side else None for side in (old, new))
        if was != now:
            effect = max((it.meaning.effect for it in sides), key=_BY_SEVERITY.index)
            changes.append(Change(sides[0].binding, was, now, effect))
    return sorted(changes, key=lambda change: change.binding)


def require_same_run(changes: list[Change], allowed: bool) -> None:
    """Refuses changes that make a checkpoint one of another run.

    Raises:
        BadInput: naming the first of them, unless the user `allowed` them.
    """
    refused = [change for change in changes if change.effect is Effect.ANOTHER_RUN]
    if refused and not allowed:
        first = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise another_run(first.binding, first.after, f"{first.before}{more}", "set it back")


def another_run(what: str, now: str | None, before: str | None, remedy: str) -> failures.BadInput:
    """The error of a value that makes a checkpoint one of another run."""
    return failures.BadInput(
        f"{what} is {now}, the checkpoint of this workdir was made with {before}; {remedy}, start "
        "anew in another --workdir, or give --allow_config_change to go on all the same."
    )
