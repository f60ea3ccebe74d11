"""A step whose loss or gradient norm lies far above the recent ones is left out."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import settings
from nest_dist.base.checks import Within

# What is watched of a step.
WATCHED = ("loss", "gradient_norm")
# Steps seen, and running mean and variance of each watched value: scalars.
State = dict[str, typing.Any]


@settings.register
class SpikeRule:
    """Compares loss and gradient norm with their running means; its state is in the checkpoint.

    A spike enters the means as far as the limit, so a rise that lasts is accepted after a while.

    Attributes:
        deviations: standard deviations above the mean from which on a step is left out.
        memory_steps: over which mean and variance run, and before which nothing is left out.
    """

    deviations: typing.Annotated[float, Within(0, open_low=True)] = 6.0
    memory_steps: typing.Annotated[int, Within(2)] = 200

    def init(self) -> State:
        """Before the first step."""
        # Each scalar is an array of its own: a step donates them all.
        moments = {
            name: {moment: jnp.zeros(()) for moment in ("mean", "variance")} for name in WATCHED
        }
        return {"steps": jnp.zeros((), jnp.int32), **moments}

    def __call__(self, before: State, values: Mapping[str, jax.Array]) -> tuple[jax.Array, State]:
        """Whether a step with these values is a spike, and the state after it.

        A value that is not finite is no spike, and changes nothing.
        """
        steps = before["steps"]
        finite = jnp.all(jnp.isfinite(jnp.stack([values[name] for name in WATCHED])))
        weight = 1 / jnp.minimum(steps + 1, self.memory_steps)
        is_spike, after = jnp.zeros((), jnp.bool_), {"steps": steps + 1}
        for name in WATCHED:
            mean, variance = before[name]["mean"], before[name]["variance"]
            limit = mean + self.deviations * jnp.sqrt(variance)
            limit = jnp.where(steps < self.memory_steps, jnp.inf, limit)
            is_spike |= values[name] > limit
            change = jnp.minimum(values[name], limit) - mean
            after[name] = {
                "mean": mean + weight * change,
                "variance": (1 - weight) * (variance + weight * change**2),
            }
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        return finite & is_spike, after
