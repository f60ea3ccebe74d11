"""What a changed configuration means for a run that goes on from a checkpoint."""

import dataclasses
import enum

from nest_dist.base import failures
from nest_dist.commands import recorded


class Effect(enum.Enum):
    """What a changed key does to a run, from the least to the most."""

    NONE = "the run stays the same"
    CHANGES = "the run goes on differently"
    ANOTHER_RUN = "the checkpoint belongs to another run"


# By the field of `Run` through which a key is reached; every other field changes the run.
_OF_FIELD = {
    "model": Effect.ANOTHER_RUN,
    "training_data": Effect.ANOTHER_RUN,
    "seed": Effect.ANOTHER_RUN,
    "global_batch": Effect.ANOTHER_RUN,
    "mesh": Effect.NONE,
    "rules": Effect.NONE,
    "evaluation_data": Effect.NONE,
    "evaluate_every_epochs": Effect.NONE,
    "save_every_epochs": Effect.NONE,
    "log_every_steps": Effect.NONE,
    "keep": Effect.NONE,
    "stuck_seconds": Effect.NONE,
    "init_from": Effect.NONE,  # a checkpoint takes its place
}
# Keys that differ from the field they are reached through.
_OF_KEY = {
    "TrainingData.threads": Effect.NONE,
    "TrainingData.workers": Effect.NONE,
    "TrainingData.read_ahead_bytes": Effect.NONE,
    "NesT.remat": Effect.NONE,
    "NesT.stochastic_depth": Effect.CHANGES,
    "NesT.attention_dropout": Effect.CHANGES,
    "NesT.projection_dropout": Effect.CHANGES,
    "NesT.gelu": Effect.CHANGES,
    "NesT.compute_dtype": Effect.CHANGES,
}


@dataclasses.dataclass(frozen=True)
class Change:
    """One key with two values; None where the key is not set."""

    key: str
    before: str | None
    after: str | None
    effect: Effect

    def __str__(self) -> str:
        before, after = ("nothing" if it is None else it for it in (self.before, self.after))
        return f"{self.key} was {before}, is {after}: {self.effect.value}"


def between(before: str, after: str) -> list[Change]:
    """The keys in which two operative configurations differ, in alphabetical order."""
    old, new = _effects(before), _effects(after)
    found = []
    for key in sorted(old.keys() | new.keys()):
        (was, one), (now, other) = (side.get(key, (None, Effect.NONE)) for side in (old, new))
        if was != now:
            found.append(Change(key, was, now, max(one, other, key=list(Effect).index)))
    return found


def require_same_run(changes: list[Change], allowed: bool) -> None:
    """Refuses changes with which the checkpoint means nothing.

    Args:
        changes: between the checkpoint's configuration and the one of now.
        allowed: whether the user wants them all the same.
    Raises:
        BadInput: naming the first of them.
    """
    refused = [change for change in changes if change.effect is Effect.ANOTHER_RUN]
    if refused and not allowed:
        first = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise failures.BadInput(
            f"{first.key} is {first.after}, the checkpoint of this workdir was made with "
            f"{first.before}{more}; set it back, start anew in another --workdir, or give "
            "--allow_config_change to go on all the same."
        )


def _effects(text: str) -> dict[str, tuple[str, Effect]]:
    """Value and effect of each key of a configuration; of a key used twice, the greater effect."""
    found: dict[str, tuple[str, Effect]] = {}
    for field, keys in recorded.Recorded(text).reached("Run").items():
        for key, value in keys.items():
            effect = _OF_KEY.get(key, _OF_FIELD.get(field, Effect.CHANGES))
            _, other = found.get(key, (value, Effect.NONE))
            found[key] = value, max(effect, other, key=list(Effect).index)
    return found
