"""Around the step: what happens to an update that is not finite, and to a step without data."""

import dataclasses
import typing

import gin
import jax
import jax.numpy as jnp

from nest_dist.base import checks
from nest_dist.train import loop, state, step

# In place of the labels of a batch that a process does not have, see `guarded`.
NO_DATA = -1


@gin.register
@dataclasses.dataclass(frozen=True)
class NotFinite:
    """What a run does about a loss, gradient or update that is not finite.

    Attributes:
        policy: "stop" ends the run; "skip" leaves parameters and optimizer as they are and goes on
            with the next batch; "rewind" goes back to the last checkpoint and leaves out the
            batches from there to the bad one.
        limit: of skips or rewinds, from the start or the last resume on; one more ends the run.
    """

    policy: typing.Literal["stop", "skip", "rewind"] = "stop"
    limit: int = 10

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("NotFinite.limit", self.limit, 1)


def guarded(train_step: step.TrainStep, skip: bool) -> step.TrainStep:
    """A training step that leaves the state as it was where it must.

    A batch of which any process has no data changes nothing, not even the number of the step: so a
    process whose data stalls can take part in the steps that the others have begun, and all can
    stop with the state they had. The metric "train/applied" is 0 then, and else 1.

    Args:
        train_step: as of `step.train_step`.
        skip: whether an update that is not finite is left out; "train/skipped" is 1 then, else 0.
    """

    def guarded_step(
        before: state.TrainState, batch: step.DeviceBatch
    ) -> tuple[state.TrainState, step.Metrics]:
        after, metrics = train_step(before, batch)
        if skip:
            finite = jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in loop.WATCHED])))
            after = _either(finite, after, dataclasses.replace(before, step=after.step))
            metrics = {**metrics, "train/skipped": 1.0 - finite}
        has_data = jnp.min(batch["label"]) > NO_DATA
        metrics = {**metrics, "train/applied": has_data.astype(jnp.float32)}
        return _either(has_data, after, before), metrics

    return guarded_step


@jax.named_scope("optimizer")
def _either(condition: jax.Array, one: state.TrainState, other: state.TrainState) -> typing.Any:
    return jax.tree.map(lambda left, right: jnp.where(condition, left, right), one, other)
